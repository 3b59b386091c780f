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
PYTHON=${PYTHON:-python}
AMP=${AMP:-$($PYTHON -c 'from cssoftmax import processor; print("bf16" if processor.bfloat16_slowdown() < 1 else "no")')}

# name, then what `cssoftmax compare` takes: the shortest first, the protocols of cosine losses last.
comparisons() {
    cat <<'END'
fsdd-closed           fsdd     --epochs 10 --tune 8 --seeds 5
mnist-closed          mnist    --epochs 4  --tune 6 --seeds 5
esc10-closed          esc10    --epochs 30 --tune 3 --seeds 3
cifar10-closed        cifar10  --epochs 6  --tune 5 --seeds 3
cifar100-closed       cifar100 --epochs 6  --tune 5 --seeds 3
fsdd-verification     fsdd     --epochs 10 --tune 2 --seeds 3 --protocol verification
cifar100-verification cifar100 --epochs 6  --tune 3 --seeds 3 --protocol verification
cifar100-open         cifar100 --epochs 6  --tune 3 --seeds 3 --protocol open
END
}

for wanted in "$@"; do
    comparisons | grep -q "^$wanted " || { echo "error: $wanted is not one of:" >&2; comparisons | cut -d' ' -f1 >&2; exit 1; }
done
comparisons | while read -r name arguments; do
    case " $* " in "  " | *" $name "*) ;; *) continue ;; esac
    echo "== $name" >&2
    # shellcheck disable=SC2086  # the arguments are words
    $PYTHON -m cssoftmax compare $arguments --losses "$LOSSES" --amp "$AMP" --jobs "$JOBS" \
        --output "results/comparisons/$name" </dev/null
done
