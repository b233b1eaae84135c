/* What the kernels of circuits share: rows of a tile, products of them, and the acceleration.

   A tile's arrays have rows `row_stride(n)` floats apart, whose first `padded(n)` are worked on.
   Behind the n-th they are 0, or whatever keeps a quotient finite. */

/* As in deq_organics/steady_state/methods/preconditioner.py. */
#define SMALLEST_FACTOR (1.0f / 16.0f)
#define LARGEST_FACTOR 1e4f

static inline const float *recurrent_panels(const struct circuits *s)
{
    return s->packed;
}

static inline const float *pool_panels(const struct circuits *s)
{
    return s->identity ? s->packed : s->packed + s->neurons * padded(s->neurons);
}

static inline const float *inverse_panels(const struct circuits *s)
{
    return s->packed + 2 * s->neurons * padded(s->neurons);
}

/* The transposed Wr, of an adjoint. */
static inline const float *turned_panels(const struct circuits *s)
{
    return s->packed + 3 * s->neurons * padded(s->neurons);
}

/* out = the rows of a tile times a packed matrix; `buffer` takes (rows, PANEL). */
static void multiply(const struct circuits *s, int64_t rows, const float *left, const float *panels,
                     float *out, float *buffer)
{
    const int64_t n = s->neurons, stride = row_stride(n);
    const struct operand operand = {left, stride, n};
    for (int64_t column = 0; column < n; column += PANEL) {
        product(rows, &operand, 1, panels + column * n, buffer);
        for (int64_t row = 0; row < rows; row++) {
            float *to = out + row * stride + column;
            store(to, load(buffer + row * PANEL));
            store(to + LANES, load(buffer + row * PANEL + LANES));
        }
    }
}

/* The scalar product of two rows. */
INLINE float dot(const float *left, const float *right, int64_t width)
{
    vec even = {0}, odd = {0};
    for (int64_t i = 0; i < width; i += PANEL) {
        even += load(left + i) * load(right + i);
        odd += load(left + i + LANES) * load(right + i + LANES);
    }
    return sum_lanes(even + odd);
}

INLINE float length_of(const float *row, int64_t width)
{
    return __builtin_sqrtf(dot(row, row, width));
}

/* The power of two next to a magnitude, as `size_of` in deq_organics/norms.py. */
INLINE float size_of(float largest)
{
    uint32_t bits;
    memcpy(&bits, &largest, sizeof bits);
    bits &= 0x7f800000;
    float size;
    memcpy(&size, &bits, sizeof size);
    /* Beyond the smallest power of two that is normal, and the largest one. */
    if (!(size > 0.0f))
        return largest > 0.0f ? 0x1p-126f : 0.5f;
    return size <= 0x1p127f ? size : 0x1p127f;
}

/* The row's factor that makes the preconditioner exact for a diagonal Wr. */
INLINE vec row_factor(vec diagonal, vec reference, vec gain)
{
    vec factor = (1.0f - (1.0f - reference) * diagonal) / (1.0f - gain * diagonal);
    factor = select_lanes(factor < SMALLEST_FACTOR, broadcast(SMALLEST_FACTOR), factor);
    return select_lanes(factor > LARGEST_FACTOR, broadcast(LARGEST_FACTOR), factor);
}

/* What belongs to the preconditioner's inverse, one row each; behind the n-th: 0 and 1. */
static void take_reference(const struct circuits *s, float *diagonal, float *reference)
{
    const int64_t n = s->neurons;
    for (int64_t i = 0; i < row_stride(n); i++) {
        diagonal[i] = i < n ? s->diagonal[i] : 0.0f;
        reference[i] = i < n ? s->reference[i] : 1.0f;
    }
}

/* Anderson acceleration of each row by itself; deq_organics/steady_state/methods/acceleration.py
   has the argument. `basis_*` are (depth, tile, row_stride), `last_*` one of these. */
struct acceleration {
    int64_t depth, tile;
    float smallest_part;
    float *last_r, *last_x, *basis_r, *basis_x;
    float *overlap; /* (tile, depth) */
    int64_t *count; /* (tile): of residuals so far. */
};

#define MOST_DEPTH 8

/* x becomes the next iterate, from its residual r = g(x) - x. */
static void propose(const struct acceleration *k, int64_t row, int64_t stride, int64_t width,
                    float *x, const float *r)
{
    float *last_r = k->last_r + row * stride, *last_x = k->last_x + row * stride;
    const int64_t before = k->count[row]++;
    if (before == 0) {
        for (int64_t i = 0; i < width; i += LANES) {
            vec residual = load(r + i), mapped = load(x + i) + residual;
            store(last_r + i, residual);
            store(last_x + i, mapped);
            store(x + i, mapped);
        }
        return;
    }
    const int64_t differences = before - 1;
    const int64_t used = differences < k->depth ? differences : k->depth;
    const int64_t oldest = differences % k->depth, across = k->tile * stride;
    float *basis_r = k->basis_r + row * stride, *basis_x = k->basis_x + row * stride;
    float *overlap = k->overlap + row * k->depth, change[MOST_DEPTH], known[MOST_DEPTH];
    for (int64_t j = 0; j < used; j++) {
        float found = dot(basis_r + j * across, r, width);
        change[j] = found - overlap[j];
        overlap[j] = found;
        /* The newest difference takes the place of the oldest. */
        known[j] = used == k->depth && j == oldest ? 0.0f : found;
    }
    vec whole = {0}, rest = {0};
    for (int64_t i = 0; i < width; i += LANES) {
        vec residual = load(r + i), mapped = load(x + i) + residual;
        vec step_r = residual - load(last_r + i), step_x = mapped - load(last_x + i);
        store(last_r + i, residual);
        store(last_x + i, mapped);
        whole += step_r * step_r;
        for (int64_t j = 0; j < used; j++) {
            vec direction = load(basis_x + j * across + i);
            step_r -= change[j] * load(basis_r + j * across + i);
            step_x -= change[j] * direction;
            mapped -= known[j] * direction;
        }
        rest += step_r * step_r;
        store(basis_r + oldest * across + i, step_r);
        store(basis_x + oldest * across + i, step_x);
        store(x + i, mapped);
    }
    const float norm = __builtin_sqrtf(sum_lanes(rest));
    /* A difference that the basis spans already is noise: it must not steer a step. */
    const int useful = norm > k->smallest_part * __builtin_sqrtf(sum_lanes(whole));
    const float scale = useful ? 1.0f / norm : 0.0f;
    float *newest_r = basis_r + oldest * across, *newest_x = basis_x + oldest * across;
    vec product = {0};
    for (int64_t i = 0; i < width; i += LANES) {
        vec direction = load(newest_r + i) * scale;
        store(newest_r + i, direction);
        product += direction * load(r + i);
    }
    const float newest = sum_lanes(product);
    overlap[oldest] = newest;
    for (int64_t i = 0; i < width; i += LANES) {
        vec direction = load(newest_x + i) * scale;
        store(newest_x + i, direction);
        store(x + i, load(x + i) - newest * direction);
    }
}

/* Let row `to` go on with what row `from` knows. */
static void move_acceleration(const struct acceleration *k, int64_t from, int64_t to,
                              int64_t stride, int64_t width)
{
    const size_t bytes = 4 * (size_t)width;
    const int64_t across = k->tile * stride;
    memcpy(k->last_r + to * stride, k->last_r + from * stride, bytes);
    memcpy(k->last_x + to * stride, k->last_x + from * stride, bytes);
    for (int64_t j = 0; j < k->depth; j++) {
        memcpy(k->basis_r + j * across + to * stride, k->basis_r + j * across + from * stride,
               bytes);
        memcpy(k->basis_x + j * across + to * stride, k->basis_x + j * across + from * stride,
               bytes);
        k->overlap[to * k->depth + j] = k->overlap[from * k->depth + j];
    }
    k->count[to] = k->count[from];
}

static int64_t acceleration_floats(int64_t depth, int64_t tile, int64_t stride)
{
    return (2 * depth + 2) * (tile * stride + 16) + tile * depth + 16 + 2 * tile + 16;
}

static struct acceleration cut_acceleration(struct arena *arena, int64_t depth, int64_t tile,
                                            int64_t stride, float smallest_part)
{
    return (struct acceleration){
        .depth = depth,
        .tile = tile,
        .smallest_part = smallest_part,
        .last_r = cut(arena, tile * stride),
        .last_x = cut(arena, tile * stride),
        .basis_r = cut(arena, depth * tile * stride),
        .basis_x = cut(arena, depth * tile * stride),
        .overlap = cut(arena, tile * depth),
        .count = (int64_t *)(void *)cut(arena, 2 * tile),
    };
}
