/* Products of matrices with register tiles: BLOCK_ROWS by PANEL accumulators.

   A panel is PANEL columns of the right matrix. A packed one is contiguous, row after row. */

#define PANEL (2 * LANES)
#if LANES == 16
#define BLOCK_ROWS 12
#else
#define BLOCK_ROWS 6
#endif

/* The left matrix of a product: `depth` columns, rows `stride` apart. */
struct operand {
    const float *values;
    int64_t stride, depth;
};

INLINE int64_t padded(int64_t size)
{
    return (size + PANEL - 1) / PANEL * PANEL;
}

/* Between rows of a scratch matrix: an odd number of vectors, so that columns spread over the
   sets of the cache. */
INLINE int64_t row_stride(int64_t size)
{
    return padded(size) + LANES;
}

/* out (rows, PANEL) = or += the sum over k of left[row, k] right[k]. */
INLINE void block(const int rows, const float *left, int64_t across, int64_t along,
                  const float *right, int64_t right_stride, int64_t depth, vec sum[][2])
{
    for (int64_t k = 0; k < depth; k++) {
        vec first = load(right), second = load(right + LANES);
#pragma GCC unroll 12
        for (int row = 0; row < rows; row++) {
            vec factor = broadcast(left[row * across]);
            sum[row][0] += factor * first;
            sum[row][1] += factor * second;
        }
        left += along;
        right += right_stride;
    }
}

INLINE void block_product(const int rows, const struct operand *operands, int count, int64_t row,
                          const float *panel, float *out)
{
    vec sum[BLOCK_ROWS][2];
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++)
        sum[i][0] = sum[i][1] = (vec){0};
    for (int c = 0; c < count; c++) {
        const struct operand *of = operands + c;
        block(rows, of->values + row * of->stride, of->stride, 1, panel, PANEL, of->depth, sum);
        panel += of->depth * PANEL;
    }
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) {
        store(out + i * PANEL, sum[i][0]);
        store(out + i * PANEL + LANES, sum[i][1]);
    }
}

INLINE void block_gradient(const int rows, const float *left, int64_t left_stride,
                           const float *right, int64_t right_stride, int64_t depth, float *out,
                           int64_t out_stride)
{
    vec sum[BLOCK_ROWS][2];
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) {
        sum[i][0] = load(out + i * out_stride);
        sum[i][1] = load(out + i * out_stride + LANES);
    }
    block(rows, left, 1, left_stride, right, right_stride, depth, sum);
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) {
        store(out + i * out_stride, sum[i][0]);
        store(out + i * out_stride + LANES, sum[i][1]);
    }
}

/* Rows of the next block: never so few that the loads of the right matrix would be the limit. */
INLINE int next_rows(int64_t left)
{
    if (left > BLOCK_ROWS && left < BLOCK_ROWS + BLOCK_ROWS / 2)
        return (int)((left + 1) / 2);
    return left < BLOCK_ROWS ? (int)left : BLOCK_ROWS;
}

#if BLOCK_ROWS == 12
#define EACH_SIZE(CASE) CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) \
    CASE(10) CASE(11) CASE(12)
#else
#define EACH_SIZE(CASE) CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#endif

/* out (rows, PANEL): one panel of the product of [operands] with the matrix that is packed.

   The operands stand side by side; the packed rows follow in the same order. A row of the result
   has the same bits whatever rows are beside it. */
static void product(int64_t rows, const struct operand *operands, int count, const float *panel,
                    float *out)
{
    for (int64_t row = 0; row < rows;) {
        int size = next_rows(rows - row);
        switch (size) {
#define CASE(ROWS)                                                                                 \
    case ROWS:                                                                                     \
        block_product(ROWS, operands, count, row, panel, out + row * PANEL);                       \
        break;
            EACH_SIZE(CASE)
#undef CASE
        }
        row += size;
    }
}

/* out (rows, columns) += left^T right, both with `depth` rows. */
static void add_gradient(int64_t rows, int64_t columns, const float *left, int64_t left_stride,
                         const float *right, int64_t right_stride, int64_t depth, float *out,
                         int64_t out_stride)
{
    for (int64_t column = 0; column < columns; column += PANEL) {
        for (int64_t row = 0; row < rows;) {
            int size = next_rows(rows - row);
            float *to = out + row * out_stride + column;
            switch (size) {
#define CASE(ROWS)                                                                                 \
    case ROWS:                                                                                     \
        block_gradient(ROWS, left + row, left_stride, right + column, right_stride, depth, to,     \
                       out_stride);                                                                \
        break;
                EACH_SIZE(CASE)
#undef CASE
            }
            row += size;
        }
    }
}
