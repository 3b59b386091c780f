/* The elementwise work of the CPU engines, one pass over a block where PyTorch's operators make ten.

A block is (n, m): products of n embeddings with m classes, row by row. Its classes are [first, first + m) of all, and
target[i] is the class of row i. Logits are in powers of two: scale is the loss's scale times log2(e).

N(c) and its slope, of the similarity at hand, are put in the place of the line below; see build.py, which also defines
PARAMETERS, the row parameters and settings that they take, ARGUMENTS, what is handed over for them, and LOAD, which
reads these for row i. */

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

/* Relative error below 2e-7; 0 below 2^-126. */
static inline float exp2_(float x) {
    float bounded = x > -127.0f ? (x < 128.0f ? x : 128.0f) : -127.0f; /* of NaN a number: it becomes an integer */
    float whole = rintf(bounded), part = x - whole;                    /* and here it stays NaN */
    float power = 1.5353362e-4f;
    power = power * part + 1.3398874e-3f;
    power = power * part + 9.6184374e-3f;
    power = power * part + 5.5503324e-2f;
    power = power * part + 2.4022648e-1f;
    power = power * part + 6.9314720e-1f;
    power = power * part + 1.0f;
    uint32_t bits = (uint32_t)((int32_t)whole + 127) << 23;
    float scale;
    memcpy(&scale, &bits, 4);
    return x < -126.0f ? 0.0f : power * scale;
}

static inline float log2_(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    int32_t exponent = (int32_t)(bits - 0x3f3504f3u) >> 23; /* so that the rest is in [sqrt(1/2), sqrt(2)) */
    bits -= (uint32_t)exponent << 23;
    float rest;
    memcpy(&rest, &bits, 4);
    float s = (rest - 1.0f) / (rest + 1.0f), square = s * s;
    float series = 1.0f / 9;
    series = series * square + 1.0f / 7;
    series = series * square + 1.0f / 5;
    series = series * square + 1.0f / 3;
    series = series * square + 1.0f;
    float logarithm = 2.88539008f * s * series + (float)exponent;
    logarithm = x < FLT_MIN ? -INFINITY : logarithm;
    return x >= 0.0f ? logarithm : NAN;
}

static inline float exp_(float x) { return exp2_(x * 1.44269504f); }
static inline float log_(float x) { return log2_(x) * 0.693147181f; }
/* log(1 + t) for t >= 0, as exact where 1 + t is 1. */
static inline float log_of_1_plus(float t) {
    float sum = 1.0f + t, rounded = sum - 1.0f;
    return rounded == 0.0f ? t : log_(sum) * (t / rounded);
}
static inline float larger(float a, float b) { return a > b || a != a ? a : b; }
static inline float smaller(float a, float b) { return a < b || a != a ? a : b; }

/* bfloat16, to the nearest and to even, as PyTorch rounds. */
static inline uint16_t rounded(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return x == x ? (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16) : 0x7fc0u;
}
static inline float widened(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float wide;
    memcpy(&wide, &bits, 4);
    return wide;
}

/* SIMILARITY */

#define PARALLEL(work) _Pragma(TEXT(omp parallel for schedule(static) num_threads(threads) if (work > 8192)))
#define TEXT(text) #text

/* The cosines of a row: products by what the lengths of both sides leave of them, and a bias. */
static inline void finish(float *c, int m, float inverse_x, const float *inverse_w, const float *bias) {
    if (inverse_w)
        for (int j = 0; j < m; j++) c[j] *= inverse_x * inverse_w[j];
    if (bias)
        for (int j = 0; j < m; j++) c[j] += bias[j];
}

/* From the cosines of a row to the largest logit, its own class left out, and the sum of the exponentials relative to
it. With keep, the cosines become these exponentials times the slopes of N. */
static inline void exponentials(float *c, int m, int own, float scale, int keep, float *largest, float *total PARAMETERS) {
    float top = -FLT_MAX, sum = 0.0f;
#pragma omp simd reduction(max : top)
    for (int j = 0; j < m; j++) {
        float similarity = j == own ? -FLT_MAX : negative(c[j] ARGUMENTS);
        top = similarity > top ? similarity : top;
    }
    top = larger(top * scale, -FLT_MAX);
    if (keep) {
#pragma omp simd reduction(+ : sum)
        for (int j = 0; j < m; j++) {
            float power = exp2_(negative(c[j] ARGUMENTS) * scale - top);
            power = j == own ? 0.0f : power;
            sum += power;
            c[j] = power * negative_slope(c[j] ARGUMENTS);
        }
    } else {
#pragma omp simd reduction(+ : sum)
        for (int j = 0; j < m; j++) {
            float power = exp2_(negative(c[j] ARGUMENTS) * scale - top);
            sum += j == own ? 0.0f : power;
        }
    }
    *largest = top;
    *total = sum;
}

/* Of each row the largest logit, its own class left out, and the sum of the exponentials relative to it. With keep, the
block becomes these exponentials times the slopes of N and the inverse lengths of the class weights. The products are in
the block, or elsewhere in float or bfloat16. */
void forward(float *block, const float *products, const uint16_t *rough, long n, long m, const float *inverse_w, const float *bias, const int64_t *target, long first,
             float scale, const float *const *rows, const long *steps, const float *settings, float *tops, float *sums,
             int keep, int threads) {
    PARALLEL(n * m)
    for (long i = 0; i < n; i++) {
        LOAD
        float *c = block + i * m;
        int own = target[i] >= first && target[i] < first + m ? (int)(target[i] - first) : -1;
        if (rough)
            for (int j = 0; j < (int)m; j++) c[j] = widened(rough[i * m + j]);
        else if (products != block)
            memcpy(c, products + i * m, sizeof(float) * m);
        finish(c, (int)m, 1.0f, inverse_w, bias);
        exponentials(c, (int)m, own, scale, keep, tops + i, sums + i ARGUMENTS);
        if (keep && inverse_w)
            for (int j = 0; j < (int)m; j++) c[j] *= inverse_w[j];
    }
}

/* From what forward kept to the gradient in the products, in float or bfloat16, the other of which is null: each row by
its factor, its own class's as given. */
void finished(const float *block, float *gradient, uint16_t *rough, long n, long m, const int64_t *target, long first,
              const float *factors, const float *owns, int threads) {
    PARALLEL(n * m)
    for (long i = 0; i < n; i++) {
        const float *kept = block + i * m;
        float factor = factors[i];
        long own = target[i] >= first && target[i] < first + m ? i * m + target[i] - first : -1;
        if (gradient) {
            for (int j = 0; j < (int)m; j++) gradient[i * m + j] = kept[j] * factor;
            if (own >= 0) gradient[own] = owns[i];
        } else {
            for (int j = 0; j < (int)m; j++) rough[i * m + j] = rounded(kept[j] * factor);
            if (own >= 0) rough[own] = rounded(owns[i]);
        }
    }
}

/* From products that were not kept to the same, given the largest logit of each row in all blocks. */
void again(float *block, long n, long m, const float *inverse_w, const float *bias, const int64_t *target, long first,
           float scale, const float *const *rows, const long *steps, const float *settings, const float *tops,
           const float *factors, const float *owns, int threads) {
    PARALLEL(n * m)
    for (long i = 0; i < n; i++) {
        LOAD
        float *c = block + i * m, top = tops[i], factor = factors[i];
        finish(c, (int)m, 1.0f, inverse_w, bias);
        for (int j = 0; j < (int)m; j++) {
            float power = exp2_(negative(c[j] ARGUMENTS) * scale - top);
            c[j] = factor * power * negative_slope(c[j] ARGUMENTS);
        }
        if (inverse_w)
            for (int j = 0; j < (int)m; j++) c[j] *= inverse_w[j];
        if (target[i] >= first && target[i] < first + m) c[target[i] - first] = owns[i];
    }
}

/* The length of a vector and its inverse; 0 for one too short to have a direction. */
static inline void length_of(float square, float shortest, float *length, float *inverse) {
    float root = sqrtf(square);
    int none = root <= shortest;
    if (length) *length = none ? 0.0f : root;
    *inverse = none ? 0.0f : 1.0f / root;
}

/* Those of (n, d) vectors, and the vectors in bfloat16 if they are asked for. */
void lengths(const float *vectors, long n, long d, float shortest, float *length, float *inverse, uint16_t *rough,
             int threads) {
    PARALLEL(n * d)
    for (long i = 0; i < n; i++) {
        const float *v = vectors + i * d;
        float square = 0.0f;
#pragma omp simd reduction(+ : square)
        for (long k = 0; k < d; k++) square += v[k] * v[k];
        length_of(square, shortest, length ? length + i : 0, inverse + i);
        if (rough)
            for (long k = 0; k < d; k++) rough[i * d + k] = rounded(v[k]);
    }
}

/* From gradients in directions, divided by the vectors' lengths, to those in the vectors, all by a factor. The former
are where the latter will be, or in bfloat16 elsewhere. */
void project(float *gradient, const uint16_t *products, const float *vectors, long n, long d, const float *inverse, float factor, int threads) {
    PARALLEL(n * d)
    for (long i = 0; i < n; i++) {
        float *g = gradient + i * d, along = 0.0f;
        const float *v = vectors + i * d;
        if (products)
            for (long k = 0; k < d; k++) g[k] = widened(products[i * d + k]);
#pragma omp simd reduction(+ : along)
        for (long k = 0; k < d; k++) along += g[k] * v[k];
        along *= inverse[i] * inverse[i];
        for (long k = 0; k < d; k++) g[k] = factor * (g[k] - along * v[k]);
    }
}

/* The cosines to the rows' own classes. */
void owns(const float *block, long n, long m, const float *inverse_x, const float *inverse_w, const float *bias,
          const int64_t *target, float *own) {
    for (long i = 0; i < n; i++) {
        long j = target[i];
        own[i] = block[i * m + j] * (inverse_x ? inverse_x[i] : 1.0f) * (inverse_w ? inverse_w[j] : 1.0f);
        if (bias) own[i] += bias[j];
    }
}

#ifdef __AVX512F__
#define WIDE 16
#else
#define WIDE 8
#endif
typedef float vector __attribute__((vector_size(4 * WIDE), aligned(4), may_alias));
#define ROWS 4 /* embeddings at work at once */

static inline vector load(const float *from) { return *(const vector *)from; }
static inline void store(float *to, vector v) { *(vector *)to = v; }
static inline float sum_of(vector v) {
    float parts[4] = {0}, all[WIDE];
    store(all, v);
    for (int k = 0; k < WIDE; k += 4)
        for (int part = 0; part < 4; part++) parts[part] += all[k + part];
    return (parts[0] + parts[1]) + (parts[2] + parts[3]);
}

/* The vectors from row i on, the last of them again where there are no more. */
static inline void some(const float *vectors, long i, long n, long d, const float **rows) {
    for (long r = 0; r < ROWS; r++) rows[r] = vectors + (i + r < n ? i + r : n - 1) * d;
}

/* The inner products of each of ROWS vectors with each of ROWS others. */
static inline void inner_products(const float **v, const float **w, long d, float found[ROWS][ROWS]) {
    vector sums[ROWS][ROWS] = {{{0}}};
    long k = 0;
    for (; k + WIDE <= d; k += WIDE) {
        vector a[ROWS], b[ROWS];
        for (int r = 0; r < ROWS; r++) a[r] = load(v[r] + k), b[r] = load(w[r] + k);
        for (int r = 0; r < ROWS; r++)
            for (int q = 0; q < ROWS; q++) sums[r][q] += a[r] * b[q];
    }
    for (int r = 0; r < ROWS; r++)
        for (int q = 0; q < ROWS; q++) {
            found[r][q] = sum_of(sums[r][q]);
            for (long rest = k; rest < d; rest++) found[r][q] += v[r][rest] * w[q][rest];
        }
}

/* For few classes: the products of (n, d) embeddings with (m, d) class weights, (n, m); lengths and inverses of both,
of the class weights unless null; and the cosine of each embedding to its own class, in which only the lengths count
that are divided out: of both, or of the class weights alone. */
void multiplied(const float *x, const float *w, long n, long m, long d, float shortest, int both, const float *bias,
                const int64_t *target, float *block, float *norm, float *inverse_x, float *inverse_w, float *own,
                int threads) {
    if (inverse_w) lengths(w, m, d, shortest, 0, inverse_w, 0, 1);
    PARALLEL(n * m * d)
    for (long i = 0; i < n; i += ROWS) {
        const float *v[ROWS], *classes[ROWS];
        float found[ROWS][ROWS];
        long size = n - i < ROWS ? n - i : ROWS;
        some(x, i, n, d, v);
        for (long r = 0; r < size; r++) {
            vector squares = {0};
            float square = 0.0f;
            long k = 0;
            for (; k + WIDE <= d; k += WIDE) squares += load(v[r] + k) * load(v[r] + k);
            for (; k < d; k++) square += v[r][k] * v[r][k];
            length_of(square + sum_of(squares), shortest, norm + i + r, inverse_x + i + r);
        }
        for (long j = 0; j < m; j += ROWS) {
            some(w, j, m, d, classes);
            inner_products(v, classes, d, found);
            for (long r = 0; r < size; r++)
                for (long q = 0; q < ROWS && j + q < m; q++) block[(i + r) * m + j + q] = found[r][q];
        }
        for (long r = i; r < i + size; r++) {
            long j = target[r];
            own[r] = block[r * m + j] * (both ? inverse_x[r] : 1.0f) * (inverse_w ? inverse_w[j] : 1.0f);
            if (bias) own[r] += bias[j];
        }
    }
}

/* From the gradient g in the products to those in the embeddings and the class weights, for few classes, both by a
factor. Each part of the rows adds up to its own (m, d) of sums: the same bits with any number of threads. */
void gradients(const float *g, const float *x, const float *w, long n, long m, long d, const float *inverse_x,
               const float *inverse_w, float factor, float *grad_x, float *grad_w, float *sums, long parts, int threads) {
    PARALLEL(n * m * d)
    for (long part = 0; part < parts; part++) {
        long end = n * (part + 1) / parts;
        float *own = sums + part * m * d, by[m][ROWS];
        memset(own, 0, sizeof(float) * m * d);
        for (long i = n * part / parts; i < end; i += ROWS) {
            const float *v[ROWS], *row[ROWS];
            float to[ROWS][d], along[ROWS];
            long size = end - i < ROWS ? end - i : ROWS, k = 0;
            some(x, i, n, d, v);
            some(g, i, n, m, row);
            for (long j = 0; j < m; j++)
                for (int r = 0; r < ROWS; r++) by[j][r] = r < size ? row[r][j] : 0.0f;
            vector inner[ROWS] = {{0}};
            for (; k + 2 * WIDE <= d; k += 2 * WIDE) {
                vector a[ROWS], b[ROWS], c[ROWS] = {{0}}, e[ROWS] = {{0}};
                for (int r = 0; r < ROWS; r++) a[r] = load(v[r] + k), b[r] = load(v[r] + k + WIDE);
                for (long j = 0; j < m; j++) {
                    vector left = load(w + j * d + k), right = load(w + j * d + k + WIDE);
                    vector sum_left = load(own + j * d + k), sum_right = load(own + j * d + k + WIDE);
                    for (int r = 0; r < ROWS; r++) {
                        c[r] += by[j][r] * left;
                        e[r] += by[j][r] * right;
                        sum_left += by[j][r] * a[r];
                        sum_right += by[j][r] * b[r];
                    }
                    store(own + j * d + k, sum_left);
                    store(own + j * d + k + WIDE, sum_right);
                }
                for (int r = 0; r < ROWS; r++) {
                    store(to[r] + k, c[r]), store(to[r] + k + WIDE, e[r]);
                    inner[r] += c[r] * a[r] + e[r] * b[r];
                }
            }
            for (int r = 0; r < ROWS; r++) {
                along[r] = sum_of(inner[r]);
                for (long rest = k; rest < d; rest++) {
                    float sum = 0.0f;
                    for (long j = 0; j < m; j++) {
                        sum += by[j][r] * w[j * d + rest];
                        own[j * d + rest] += by[j][r] * v[r][rest];
                    }
                    to[r][rest] = sum;
                    along[r] += sum * v[r][rest];
                }
            }
            for (long r = 0; grad_x && r < size; r++) {
                float outward = inverse_x ? along[r] * inverse_x[i + r] * inverse_x[i + r] : 0.0f;
                for (long q = 0; q < d; q++) grad_x[(i + r) * d + q] = factor * (to[r][q] - outward * v[r][q]);
            }
        }
    }
    if (!grad_w) return;
    memcpy(grad_w, sums, sizeof(float) * m * d);
    for (long part = 1; part < parts; part++)
        for (long k = 0; k < m * d; k++) grad_w[k] += sums[part * m * d + k];
    if (inverse_w)
        project(grad_w, 0, w, m, d, inverse_w, factor, threads);
    else
        for (long k = 0; k < m * d; k++) grad_w[k] *= factor;
}

#ifdef HAS_POSITIVE
#define TILE 16
#define FEW 64 /* classes: rows side by side, not one after the other */

/* finish and exponentials for up to TILE rows at once. */
static inline void side_by_side(float *block, long m, int size, const float *inverse_x, const float *inverse_w,
                                const float *bias, const int64_t *target, long tile, float scale,
                                const float *const *rows, const long *steps, const float *settings, int keep,
                                float *cosine, float *top, float *sum) {
    float c[FEW][TILE], packed[NUMBER_OF_ROWS + 1][TILE];
    int own[TILE];
    for (int r = 0; r < TILE; r++) {
        long i = tile + (r < size ? r : 0);
        float by_row = inverse_x ? inverse_x[i] : 1.0f;
        own[r] = (int)target[i];
        for (int j = 0; j < (int)m; j++)
            c[j][r] = block[i * m + j] * (inverse_w ? by_row * inverse_w[j] : 1.0f) + (bias ? bias[j] : 0.0f);
        cosine[r] = c[own[r]][r];
        for (int k = 0; k < NUMBER_OF_ROWS; k++) packed[k][r] = rows[k][i * steps[k]];
        top[r] = -FLT_MAX;
        sum[r] = 0.0f;
    }
    for (int j = 0; j < (int)m; j++)
#pragma omp simd
        for (int r = 0; r < TILE; r++) {
            LOAD_PACKED
            float similarity = j == own[r] ? -FLT_MAX : negative(c[j][r] ARGUMENTS);
            top[r] = similarity > top[r] ? similarity : top[r];
        }
    for (int r = 0; r < TILE; r++) top[r] = larger(top[r] * scale, -FLT_MAX);
    for (int j = 0; j < (int)m; j++)
#pragma omp simd
        for (int r = 0; r < TILE; r++) {
            LOAD_PACKED
            float power = exp2_(negative(c[j][r] ARGUMENTS) * scale - top[r]);
            power = j == own[r] ? 0.0f : power;
            sum[r] += power;
            c[j][r] = power * negative_slope(c[j][r] ARGUMENTS);
        }
    for (int r = 0; keep && r < size; r++)
        for (int j = 0; j < (int)m; j++) block[(tile + r) * m + j] = c[j][r];
}

/* Where a block holds all classes: the sum of the rows' losses, each times its share. With keep, the block becomes the gradient of
their sum in the products. */
double losses(float *block, long n, long m, const float *inverse_x, const float *inverse_w, const float *bias,
            const int64_t *target, float scale, const float *const *rows, const long *steps, const float *settings,
            const float *shares, long share_step, float *values, int keep, int threads) {
    PARALLEL(n * (m + 32)) /* a row costs some exponentials and logarithms besides */
    for (long tile = 0; tile < n; tile += TILE) {
        int size = n - tile < TILE ? (int)(n - tile) : TILE;
        float cosine[TILE], top[TILE], sum[TILE], factor[TILE], own_factor[TILE];
        if (m <= FEW)
            side_by_side(block, m, size, inverse_x, inverse_w, bias, target, tile, scale, rows, steps, settings, keep,
                         cosine, top, sum);
        for (int r = 0; m > FEW && r < size; r++) {
            long i = tile + r;
            LOAD
            float *c = block + i * m;
            int own = (int)target[i];
            finish(c, (int)m, inverse_x ? inverse_x[i] : 1.0f, inverse_w, bias);
            cosine[r] = c[own];
            exponentials(c, (int)m, own, scale, keep, top + r, sum + r ARGUMENTS);
        }
#pragma omp simd
        for (int r = 0; r < size; r++) {
            long i = tile + r;
            LOAD
            float share = shares[i * share_step], by_row = inverse_x ? inverse_x[i] : 1.0f;
            /* In powers of 2, by how much the other classes' logits exceed the own one's. */
            float excess = top[r] + log2_(sum[r]) - scale * positive(cosine[r] ARGUMENTS), ratio = exp2_(-fabsf(excess));
            float loss = log_of_1_plus(ratio) + 0.693147181f * larger(excess, 0.0f);
            values[i] = share == 0.0f ? 0.0f : share * loss;
            float pull = share * scale * 0.693147181f * by_row * (excess > 0.0f ? 1.0f : ratio) / (1.0f + ratio);
            factor[r] = pull / larger(sum[r], FLT_MIN);
            own_factor[r] = -pull * positive_slope(cosine[r] ARGUMENTS);
        }
        for (int r = 0; keep && r < size; r++) {
            float *c = block + (tile + r) * m;
            int own = (int)target[tile + r];
            if (inverse_w)
                for (int j = 0; j < (int)m; j++) c[j] *= factor[r] * inverse_w[j];
            else
                for (int j = 0; j < (int)m; j++) c[j] *= factor[r];
            c[own] = inverse_w ? own_factor[r] * inverse_w[own] : own_factor[r];
        }
    }
    double total = 0.0; /* in order: the same bits with any number of threads */
    for (long i = 0; i < n; i++) total += values[i];
    return total;
}
#endif
