/* Whether quadratic forms of Jacobians exceed a bound: a Cholesky factorization in single precision
   that is a proof, as in deq_organics/stability/dissipation.py.

   The form is A = -(J + J^T) + C C^T, of the size N = 2n. What is factorized is A less
   (bound + margin) I, with

       margin = (N + 32) eps (sum_i |A_ii| + 2 N + |J|_F),    eps = 2 u = 2^-23,

   |J|_F without the decays. A factorization that completes proves that A exceeds bound I, for the
   margin is more than the sum of the 2-norms of these errors, with t = sum_i |A_ii|:

   - Of the factorization. In whatever order the sums of an entry are taken, fused or not, the
     factor R obeys R^T R = B + E for the matrix B that it was computed from, with |E| at most
     g |R|^T |R| entry by entry and g = (N + 2) u / (1 - (N + 2) u): up to N products, the last of
     which is divided, here by a product with the reciprocal of the root, one rounding more (Higham,
     Accuracy and Stability of Numerical Algorithms, Theorem 10.3). The 2-norm of |R|^T |R| is no
     larger than the squared Frobenius norm of R, which is the trace of R^T R: E is at most
     g / (1 - g) trace B, and trace B <= t.
   - Of the entries of J. Their factors are double precision numbers that were rounded, and scaled
     or divided in single precision: 2 roundings each. The weight may have been rounded, two
     roundings multiply, and one adds two such products: less than 8 u (|J_ij| + |J_ji|) in an
     entry, and 16 u |J|_F in all.
   - Of C C^T: 3 u |C|^2 for rounded columns and their products, and two sums per entry, of
     2 u (2 |J|_F + |C|^2). Since trace A = 2 N - 2 trace (J without the decays) + |C|^2, and that
     trace is at most sqrt(N) |J|_F, |C|^2 <= t + 2 sqrt(N) |J|_F: 5 u |C|^2 is at most
     5 u t + (N + 25) u |J|_F.
   - Of the sums on the diagonal with the decays, the bound and the margin: 3 u t.

   That makes (N + 10) u t + (N + 45) u |J|_F; the margin is (2 N + 64) u of both. The rest of it,
   more than N u t + (N + 19) u |J|_F, covers the terms of the order of u^2 and what the margin's
   own sums lose, at most a part of 2 N u, for N below 2^14 (whose form would take 1 GiB); and
   4 N^2 u covers underflow. Where a pivot is not positive and finite nothing is proved: a number
   that is not finite makes the pivot of its column so. */

/* Scratch of one circuit. */
struct form {
    float *matrix; /* -A and, from above, its factor: rows `form_stride` apart, their right parts. */
    float *turned_recurrent, *turned_pool; /* Transposed weights, rows `padded(n)` apart. */
    float *row_recurrent, *row_pool;       /* The weights, likewise. */
    float *recurrence, *slope, *pooling, *excitation, *pool; /* padded(n), then zeros. */
};

INLINE int64_t form_stride(int64_t n)
{
    /* Blocks of columns start anywhere, and the last one ends behind the matrix. */
    return row_stride(2 * n + PANEL);
}

static void take_weight(const float *weight, int64_t n, float *rows, float *turned)
{
    const int64_t width = padded(n);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            float entry = weight ? weight[i * n + j] : (float)(i == j);
            rows[i * width + j] = entry;
            turned[j * width + i] = entry;
        }
}

/* Squared entries of two products into `squares`; their sum. */
INLINE vec both(vec one, vec other, vec *squares)
{
    *squares += one * one + other * other;
    return one + other;
}

/* The right part of -A; returns |J|_F, or a little more: some entries count twice. */
static float build_form(const struct forms *f, const struct form *w, int64_t circuit)
{
    const int64_t n = f->neurons, width = padded(n), stride = form_stride(n);
    const float *inhibition = f->inhibition + circuit * n;
    const float *decay_y = f->decay_y + circuit * f->decay_y_stride;
    const float *decay_a = f->decay_a + circuit * f->decay_a_stride;
    vec total = {0};
    float inhibited = 0.0f;
    for (int64_t i = 0; i < n; i++) {
        vec squares = {0};
        const int64_t first = i / LANES * LANES;
        float *row = w->matrix + i * stride, *below = w->matrix + (n + i) * stride + n;
        const float *recurrent = w->row_recurrent + i * width;
        const float *turned = w->turned_recurrent + i * width;
        const float *weights = w->row_pool + i * width, *columns = w->turned_pool + i * width;
        for (int64_t j = first; j < width; j += LANES)
            store(row + j, both(w->recurrence[i] * load(recurrent + j) * load(w->slope + j),
                                w->slope[i] * load(turned + j) * load(w->recurrence + j),
                                &squares));
        for (int64_t j = 0; j < width; j += LANES) {
            vec excited = w->excitation[i] * load(columns + j) * load(w->pooling + j);
            squares += excited * excited;
            store(row + n + j, excited);
        }
        for (int64_t j = first; j < width; j += LANES)
            store(below + j, both(w->pooling[i] * load(weights + j) * load(w->pool + j),
                                  w->pool[i] * load(columns + j) * load(w->pooling + j),
                                  &squares));
        row[i] -= 2.0f * decay_y[i];
        row[n + i] -= inhibition[i];
        below[i] -= 2.0f * decay_a[i];
        inhibited += inhibition[i] * inhibition[i];
        /* Row by row, so that the sum has few roundings one after another. */
        total += squares;
    }
    return __builtin_sqrtf(sum_lanes(total) + inhibited);
}

static void add_columns(const struct forms *f, const struct form *w, int64_t circuit)
{
    const int64_t size = 2 * f->neurons, stride = form_stride(f->neurons);
    const float *columns = f->added + circuit * 2 * size;
    for (int64_t i = 0; i < size; i++)
        for (int64_t j = i; j < size; j += LANES) {
            float *to = w->matrix + i * stride + j;
            vec sum = load(to);
            for (int k = 0; k < 2; k++)
                sum -= columns[k * size + i] * load_some(columns + k * size + j, size - j);
            store(to, sum);
        }
}

/* Whether the factorization of what `matrix` is the negative of completes. */
static int factorize(float *matrix, int64_t size, int64_t stride)
{
    for (int64_t first = 0; first < size; first += BLOCK_ROWS) {
        const int64_t rows = size - first < BLOCK_ROWS ? size - first : BLOCK_ROWS;
        float *corner = matrix + first * stride + first;
        add_gradient(rows, size - first, matrix + first, stride, matrix + first, stride, first,
                     corner, stride);
        for (int64_t i = 0; i < rows; i++) {
            float *row = corner + i * stride;
            for (int64_t above = 0; above < i; above++) {
                const float *other = corner + above * stride;
                const vec factor = broadcast(other[i]);
                for (int64_t j = 0; j < size - first; j += LANES)
                    store(row + j, load(row + j) + factor * load(other + j));
            }
            const float pivot = -row[i];
            if (!(pivot > 0.0f && pivot < __builtin_inff()))
                return 0;
            const vec inverse = broadcast(-1.0f / __builtin_sqrtf(pivot));
            for (int64_t j = 0; j < size - first; j += LANES)
                store(row + j, load(row + j) * inverse);
        }
    }
    return 1;
}

static int exceeds(const struct forms *f, const struct form *w, int64_t circuit)
{
    const int64_t n = f->neurons, size = 2 * n, stride = form_stride(n);
    const float *given[] = {f->recurrence, f->slope, f->pooling, f->excitation, f->pool};
    float *taken[] = {w->recurrence, w->slope, w->pooling, w->excitation, w->pool};
    for (int i = 0; i < 5; i++)
        memcpy(taken[i], given[i] + circuit * n, 4 * (size_t)n);
    const float length = build_form(f, w, circuit);
    if (f->added)
        add_columns(f, w, circuit);
    float trace = 0.0f;
    for (int64_t i = 0; i < size; i++)
        trace += __builtin_fabsf(w->matrix[i * stride + i]);
    const float rounding = (float)(size + 32) * 0x1p-23f;
    const float margin = rounding * (trace + 2.0f * (float)size + length);
    for (int64_t i = 0; i < size; i++)
        w->matrix[i * stride + i] += f->bound + margin;
    return factorize(w->matrix, size, stride);
}

int NAME(exceeds)(const struct forms *f, int64_t first, int64_t last)
{
    const int64_t n = f->neurons, width = padded(n), square = n * width;
    const int64_t matrix = 2 * n * form_stride(n);
    float *memory = reserve(matrix + 16 + 4 * (square + 16) + 5 * (width + 16));
    if (!memory)
        return 1;
    struct arena arena = {memory};
    struct form w;
    float **parts[] = {&w.row_recurrent, &w.turned_recurrent, &w.row_pool, &w.turned_pool};
    w.matrix = cut(&arena, matrix);
    for (int i = 0; i < 4; i++)
        *parts[i] = cut(&arena, square);
    float **factors[] = {&w.recurrence, &w.slope, &w.pooling, &w.excitation, &w.pool};
    for (int i = 0; i < 5; i++)
        *factors[i] = cut(&arena, width);
    for (int64_t circuit = first; circuit < last; circuit++) {
        if (circuit == first || f->recurrent_stride)
            take_weight(f->recurrent_weight
                            ? f->recurrent_weight + circuit * f->recurrent_stride
                            : NULL,
                        n, w.row_recurrent, w.turned_recurrent);
        if (circuit == first || f->pool_stride)
            take_weight(f->normalization_weight + circuit * f->pool_stride, n, w.row_pool,
                        w.turned_pool);
        f->exceeds[circuit] = (uint8_t)exceeds(f, &w, circuit);
    }
    free(memory);
    return 0;
}
