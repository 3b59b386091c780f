#!/bin/sh
# The comparisons in results/comparisons/, one after another; started again, it goes on where it stopped.
#
#   tools/run_comparisons.sh                      all of them
#   tools/run_comparisons.sh mnist-closed ...     some
#   LOSSES=softmax,cs-softmax,... tools/run_comparisons.sh     with more losses; what is there is not trained again
#
# JOBS trainings at a time (2) share the processor. AMP is bf16 where the processor computes in it, else no.
set -eu
cd "$(dirname "$0")/.."
LOSSES=${LOSSES:-softmax,cs-softmax,normface,cosface,arcface}
JOBS=${JOBS:-2}
FAMILY=softmax,cs-softmax,normface,cosface,arcface,subcenter-arcface,sphereface,adacos,curricularface,magface,adaface,\
elasticface,circle,so-softmax
PYTHON=${PYTHON:-python}
AMP=${AMP:-$($PYTHON -c 'from cssoftmax import processor; print("bf16" if processor.bfloat16_slowdown() < 1 else "no")')}

# Name, hours, and what `cssoftmax compare` takes: the short ones first, the protocols of cosine losses last. The hours
# are about those on two cores of an AMD EPYC (Zen 4, bf16), one training on each: of five losses, of all in "family".
comparisons() {
    cat <<END
mnist-closed          0.6 mnist    --epochs 4  --tune 6 --seeds 20
fsdd-closed           0.9 fsdd     --epochs 10 --tune 8 --seeds 20
cifar10-closed        1.0 cifar10  --epochs 6  --tune 5 --seeds 3
cifar100-closed       1.0 cifar100 --epochs 6  --tune 5 --seeds 3
esc10-closed          2.0 esc10    --epochs 30 --tune 2 --seeds 10
fsdd-verification     0.7 fsdd     --epochs 10 --tune 2 --seeds 3 --protocol verification
cifar100-verification 0.6 cifar100 --epochs 6  --tune 3 --seeds 3 --protocol verification
cifar100-open         0.6 cifar100 --epochs 6  --tune 3 --seeds 3 --protocol open
mnist-family          0.8 mnist    --epochs 4  --tune 6 --seeds 5 --losses $FAMILY
END
}

for wanted in "$@"; do
    comparisons | grep -q "^$wanted " || { echo "error: $wanted is not one of:" >&2; comparisons | cut -d' ' -f1 >&2; exit 1; }
done
comparisons | while read -r name hours arguments; do
    case " $* " in "  " | *" $name "*) ;; *) continue ;; esac
    echo "== $name, about $hours hours" >&2
    # shellcheck disable=SC2086  # the arguments are words
    $PYTHON -m cssoftmax compare --losses "$LOSSES" $arguments --amp "$AMP" --jobs "$JOBS" \
        --output "results/comparisons/$name" </dev/null
done
