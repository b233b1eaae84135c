/* The adjoint of steady states: deq_organics/steady_state/adjoint.py, sample by sample, a tile at a
   time as in steady.h.

   With omega = W^T lambda_a, and p = active / (2 a), where active = drive(y):

       lambda_y - slope Wr^T (gain lambda_y) - excitation omega = g_y
       omega = W^T (g_a - p g_y + p (lambda_y - Wr^T (gain lambda_y)) - inhibition lambda_y)

   which is one linear equation in lambda_y, solved for a right-hand side of the size of 1. */

#define ADJOINT_DEPTH 6
/* A difference of which less is left is rounding; as `rounding_part` in methods/acceleration.py. */
#define ROUNDING_PART (1e3f * 0x1p-23f)
/* After so many steps without a gain, an error that is accepted is what rounding allows. */
#define PATIENCE 3

struct pullback {
    struct acceleration known;
    float *y, *a; /* Behind the n-th: 0 and 1. */
    float *inhibition, *right, *residual;
    float *adjoint, *best; /* lambda_y in units of `unit`, and the best one so far. */
    float *left, *image, *solution, *excess; /* What products take and give. */
    float *buffer;
    float *diagonal, *reference;
    float *unit, *scale, *error; /* Of each row; `error` is that of `best`. */
    int64_t *sample, *steps, *stale;
};

static int64_t pullback_floats(const struct circuits *s)
{
    const int64_t stride = row_stride(s->neurons);
    return acceleration_floats(ADJOINT_DEPTH, s->tile, stride) + 11 * (s->tile * stride + 16) +
           s->tile * PANEL + 16 + 2 * (stride + 16) + 3 * (s->tile + 16) + 3 * (2 * s->tile + 16);
}

static struct pullback cut_pullback(struct arena *arena, const struct circuits *s)
{
    const int64_t stride = row_stride(s->neurons), size = s->tile * stride;
    struct pullback w;
    w.known = cut_acceleration(arena, ADJOINT_DEPTH, s->tile, stride, ROUNDING_PART);
    float **rows[] = {&w.y,    &w.a,    &w.inhibition, &w.right,    &w.residual, &w.adjoint,
                      &w.best, &w.left, &w.image,      &w.solution, &w.excess};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        *rows[i] = cut(arena, size);
    w.buffer = cut(arena, s->tile * PANEL);
    w.diagonal = cut(arena, stride);
    w.reference = cut(arena, stride);
    w.unit = cut(arena, s->tile);
    w.scale = cut(arena, s->tile);
    w.error = cut(arena, s->tile);
    int64_t **counts[] = {&w.sample, &w.steps, &w.stale};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        *counts[i] = (int64_t *)(void *)cut(arena, 2 * s->tile);
    for (int64_t i = 0; i < size; i++)
        w.a[i] = 1.0f;
    take_reference(s, w.diagonal, w.reference);
    return w;
}

/* A sample's state, or that of a circuit at rest where it has no steady state. */
static void take_state(const struct circuits *s, struct pullback *w, int64_t row, int64_t sample)
{
    const int64_t n = s->neurons, stride = row_stride(n);
    float *y = w->y + row * stride, *a = w->a + row * stride;
    if (s->status[sample] == 0) {
        memcpy(y, s->y + sample * n, 4 * (size_t)n);
        memcpy(a, s->a + sample * n, 4 * (size_t)n);
        return;
    }
    memset(y, 0, 4 * (size_t)n);
    for (int64_t i = 0; i < n; i++)
        a[i] = 1.0f;
}

/* LANES numbers of a gradient from outside, 0 where there is none. */
INLINE vec cotangent(const struct circuits *s, const float *grad, int64_t sample, int64_t i)
{
    if (!grad || s->status[sample] != 0)
        return (vec){0};
    return load_some(grad + sample * s->neurons + i, s->neurons - i);
}

/* Where the rectifier of a neuron that does not fire leaves no slope. */
INLINE vec sloping(const struct circuits *s, vec y, vec x)
{
    return s->rectified ? keep(y > 0.0f, x) : x;
}

/* image = W^T (g_a - p g_y), with the states of samples in the rows. */
static void pool_explicit(const struct circuits *s, struct pullback *w, int64_t first, int64_t rows)
{
    const int64_t n = s->neurons, stride = row_stride(n);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t lane = 0; lane < n; lane += LANES) {
            const int64_t i = row * stride + lane;
            vec part = driving(s, load(w->y + i)) / (2.0f * load(w->a + i));
            store(w->left + i, cotangent(s, s->grad_a, first + row, lane) -
                                   part * cotangent(s, s->grad_y, first + row, lane));
        }
    multiply(s, rows, w->left, pool_panels(s), w->image, w->buffer);
}

/* The right-hand side of every sample waits in the place of lambda_y, the inhibition in that of
   lambda_a. */
static void start_adjoints(const struct circuits *s, struct pullback *w, int64_t first,
                           int64_t rows)
{
    const int64_t n = s->neurons, stride = row_stride(n);
    for (int64_t row = 0; row < rows; row++) {
        take_state(s, w, row, first + row);
        for (int64_t i = row * stride; i < row * stride + n; i += LANES)
            store(w->left + i, driving(s, load(w->y + i)));
    }
    float *recurrent = w->solution;
    multiply(s, rows, w->left, turned_panels(s), recurrent, w->buffer);
    pool_explicit(s, w, first, rows);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t lane = 0; lane < n; lane += LANES) {
            const int64_t i = row * stride + lane, at = (first + row) * n + lane;
            vec a = load(w->a + i), excitation = 2.0f * driving(s, load(w->y + i)) * a;
            vec inhibition = load(recurrent + i) * (root(a) / (2.0f * a));
            store_some(s->adjoint_y + at,
                       cotangent(s, s->grad_y, first + row, lane) + excitation * load(w->image + i),
                       n - lane);
            store_some(s->adjoint_a + at, inhibition, n - lane);
        }
}

static void enter_adjoint(const struct circuits *s, struct pullback *w, int64_t row, int64_t sample)
{
    const int64_t n = s->neurons, stride = row_stride(n), width = padded(n);
    float *right = w->right + row * stride, *inhibition = w->inhibition + row * stride;
    take_state(s, w, row, sample);
    memset(right, 0, 4 * (size_t)width);
    memset(inhibition, 0, 4 * (size_t)width);
    memcpy(right, s->adjoint_y + sample * n, 4 * (size_t)n);
    memcpy(inhibition, s->adjoint_a + sample * n, 4 * (size_t)n);
    w->unit[row] = size_of(largest_of(right, width));
    for (int64_t i = 0; i < width; i += LANES) {
        store(right + i, load(right + i) / w->unit[row]);
        store(w->residual + row * stride + i, load(right + i));
        store(w->adjoint + row * stride + i, (vec){0});
        store(w->best + row * stride + i, (vec){0});
    }
    const float length = length_of(right, width);
    w->scale[row] = length > 0.0f ? length : 1.0f;
    w->error[row] = length > 0.0f ? 1.0f : 0.0f;
    w->sample[row] = sample;
    w->steps[row] = w->stale[row] = 0;
    w->known.count[row] = 0;
}

/* left = D(gain) of lambda_y; image = Wr^T left. */
static void recur(const struct circuits *s, struct pullback *w, int64_t rows, const float *adjoint)
{
    const int64_t stride = row_stride(s->neurons), width = padded(s->neurons);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = row * stride; i < row * stride + width; i += LANES)
            store(w->left + i, (1.0f - root(load(w->a + i))) * load(adjoint + i));
    multiply(s, rows, w->left, recurrent_panels(s), w->image, w->buffer);
}

/* image = W^T (p (lambda_y - Wr^T (gain lambda_y)) - inhibition lambda_y);
   excess = lambda_y - slope Wr^T (gain lambda_y). */
static void pool_implicit(const struct circuits *s, struct pullback *w, int64_t rows,
                          const float *adjoint)
{
    const int64_t stride = row_stride(s->neurons), width = padded(s->neurons);
    recur(s, w, rows, adjoint);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = row * stride; i < row * stride + width; i += LANES) {
            vec own = load(adjoint + i), recurrent = load(w->image + i), y = load(w->y + i);
            vec part = driving(s, y) / (2.0f * load(w->a + i));
            store(w->left + i, part * (own - recurrent) - load(w->inhibition + i) * own);
            store(w->excess + i, own - sloping(s, y, recurrent));
        }
    multiply(s, rows, w->left, pool_panels(s), w->image, w->buffer);
}

/* The next lambda_y, by the preconditioned residual and the acceleration. */
static void advance_adjoint(const struct circuits *s, struct pullback *w, int64_t rows)
{
    const int64_t stride = row_stride(s->neurons), width = padded(s->neurons);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = row * stride; i < row * stride + width; i += LANES)
            store(w->left + i, sloping(s, load(w->y + i), load(w->residual + i)));
    multiply(s, rows, w->left, inverse_panels(s), w->solution, w->buffer);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t lane = 0; lane < width; lane += LANES) {
            const int64_t i = row * stride + lane;
            vec factor = row_factor(load(w->diagonal + lane), load(w->reference + lane),
                                    1.0f - root(load(w->a + i)));
            store(w->solution + i, sloping(s, load(w->y + i), factor * load(w->solution + i)));
        }
    recur(s, w, rows, w->solution);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = row * stride; i < row * stride + width; i += LANES)
            store(w->left + i,
                  sloping(s, load(w->y + i),
                          load(w->residual + i) - load(w->solution + i) + load(w->image + i)));
    multiply(s, rows, w->left, inverse_panels(s), w->image, w->buffer);
    for (int64_t row = 0; row < rows; row++) {
        float *correction = w->image + row * stride;
        for (int64_t lane = 0; lane < width; lane += LANES) {
            const int64_t i = row * stride + lane;
            vec factor = row_factor(load(w->diagonal + lane), load(w->reference + lane),
                                    1.0f - root(load(w->a + i)));
            vec step = load(w->solution + i) + factor * load(w->image + i);
            /* A silent neuron of the rectified model takes no part in the recurrence. */
            if (s->rectified)
                step = select_lanes(load(w->y + i) > 0.0f, step, load(w->residual + i));
            store(correction + lane, step);
        }
        propose(&w->known, row, stride, width, w->adjoint + row * stride, correction);
        w->steps[row]++;
    }
    pool_implicit(s, w, rows, w->adjoint);
    for (int64_t row = 0; row < rows; row++) {
        vec squares = {0};
        for (int64_t i = row * stride; i < row * stride + width; i += LANES) {
            vec excitation = 2.0f * driving(s, load(w->y + i)) * load(w->a + i);
            vec residual = load(w->right + i) - load(w->excess + i) + excitation * load(w->image + i);
            store(w->residual + i, residual);
            squares += residual * residual;
        }
        const float error = __builtin_sqrtf(sum_lanes(squares)) / w->scale[row];
        w->stale[row]++;
        if (error < w->error[row]) {
            w->error[row] = error;
            w->stale[row] = 0;
            memcpy(w->best + row * stride, w->adjoint + row * stride, 4 * (size_t)width);
        }
    }
}

static void move_adjoint(const struct circuits *s, struct pullback *w, int64_t from, int64_t to)
{
    const int64_t stride = row_stride(s->neurons), width = padded(s->neurons);
    float *rows[] = {w->y, w->a, w->inhibition, w->right, w->residual, w->adjoint, w->best};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        memcpy(rows[i] + to * stride, rows[i] + from * stride, 4 * (size_t)width);
    w->unit[to] = w->unit[from];
    w->scale[to] = w->scale[from];
    w->error[to] = w->error[from];
    w->sample[to] = w->sample[from];
    w->steps[to] = w->steps[from];
    w->stale[to] = w->stale[from];
    move_acceleration(&w->known, from, to, stride, width);
}

static void leave_adjoint(const struct circuits *s, struct pullback *w, int64_t row)
{
    const int64_t n = s->neurons, stride = row_stride(n), sample = w->sample[row];
    for (int64_t i = 0; i < n; i += LANES)
        store_some(s->adjoint_y + sample * n + i, load(w->best + row * stride + i) * w->unit[row],
                   n - i);
}

static void iterate_adjoints(const struct circuits *s, struct pullback *w, int64_t first,
                             int64_t last)
{
    int64_t next = first, rows = 0;
    for (;;) {
        while (rows < s->tile && next < last)
            enter_adjoint(s, w, rows++, next++);
        if (rows == 0)
            return;
        advance_adjoint(s, w, rows);
        for (int64_t row = rows - 1; row >= 0; row--) {
            const int stuck = w->stale[row] >= PATIENCE && w->error[row] <= 0.5f * s->accepted;
            if (w->error[row] > s->tolerance && w->steps[row] < s->most_steps && !stuck)
                continue;
            leave_adjoint(s, w, row);
            if (--rows > row)
                move_adjoint(s, w, rows, row);
        }
    }
}

/* A residual by the longest of two vectors, given by their largest magnitudes and themselves. */
static float relative(const float *residual, const float *one, const float *other, int64_t width)
{
    const float first = largest_of(one, width), second = largest_of(other, width);
    const float size = size_of(first > second ? first : second);
    vec squares = {0}, ones = {0}, others = {0};
    for (int64_t i = 0; i < width; i += LANES) {
        vec r = load(residual + i) / size, x = load(one + i) / size, z = load(other + i) / size;
        squares += r * r;
        ones += x * x;
        others += z * z;
    }
    float longest = sum_lanes(ones), length = sum_lanes(others);
    longest = __builtin_sqrtf(longest > length ? longest : length);
    return __builtin_sqrtf(sum_lanes(squares)) / (longest > 0.0f ? longest : 1.0f);
}

/* lambda_a, the factors of the gradients by the weights, and the residual of all,
   `adjoint_residual`. */
static void finish(const struct circuits *s, struct pullback *w, int64_t first, int64_t rows)
{
    const int64_t n = s->neurons, stride = row_stride(n), width = padded(n);
    float *grad_y = w->right, *grad_a = w->residual, *adjoint_y = w->adjoint, *adjoint_a = w->best;
    float *explicit = w->solution;
    for (int64_t row = 0; row < rows; row++) {
        const int64_t sample = first + row;
        take_state(s, w, row, sample);
        for (int64_t lane = 0; lane < width; lane += LANES) {
            const int64_t i = row * stride + lane;
            store(grad_y + i, cotangent(s, s->grad_y, sample, lane));
            store(grad_a + i, cotangent(s, s->grad_a, sample, lane));
            store(adjoint_y + i, load_some(s->adjoint_y + sample * n + lane, n - lane));
            store(w->inhibition + i, load_some(s->adjoint_a + sample * n + lane, n - lane));
        }
    }
    pool_explicit(s, w, first, rows);
    memcpy(explicit, w->image, 4 * (size_t)(s->tile * stride));
    pool_implicit(s, w, rows, adjoint_y);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = row * stride; i < row * stride + width; i += LANES) {
            vec y = load(w->y + i), pool = driving(s, y) * driving(s, y);
            vec omega = load(explicit + i) + load(w->image + i);
            store(adjoint_a + i, load(grad_a + i) - load(w->inhibition + i) * load(adjoint_y + i) +
                                     pool * omega);
        }
    multiply(s, rows, adjoint_a, pool_panels(s), w->image, w->buffer);
    for (int64_t row = 0; row < rows; row++) {
        const int64_t sample = first + row, from = row * stride;
        float *error_y = w->left + from, *error_a = explicit + from;
        for (int64_t lane = 0; lane < width; lane += LANES) {
            const int64_t i = from + lane, at = sample * n + lane;
            vec y = load(w->y + i), a = load(w->a + i), active = driving(s, y);
            vec omega = load(w->image + i), pool = active * active, own = load(adjoint_a + i);
            store(error_y + lane,
                  2.0f * active * a * omega - load(w->excess + i) + load(grad_y + i));
            store(error_a + lane, pool * omega - load(w->inhibition + i) * load(adjoint_y + i) -
                                      own + load(grad_a + i));
            store_some(s->adjoint_a + at, own, n - lane);
            store_some(s->gained + at, (1.0f - root(a)) * load(adjoint_y + i), n - lane);
            store_some(s->pooled + at, pool * a, n - lane);
        }
        const float in_y = relative(error_y, grad_y + from, adjoint_y + from, width);
        const float in_a = relative(error_a, grad_a + from, adjoint_a + from, width);
        s->settled[sample] = __builtin_sqrtf(in_y * in_y + in_a * in_a) <= s->accepted;
    }
}

/* The adjoint that the samples have with Wr = I, in closed form. */
static void close_adjoint(const struct circuits *s, struct pullback *w, int64_t first, int64_t rows)
{
    const int64_t n = s->neurons, stride = row_stride(n);
    for (int64_t row = 0; row < rows; row++)
        take_state(s, w, row, first + row);
    pool_explicit(s, w, first, rows);
    for (int64_t row = 0; row < rows; row++) {
        const int64_t sample = first + row;
        vec unknown = {0};
        for (int64_t lane = 0; lane < n; lane += LANES) {
            const int64_t i = row * stride + lane, at = sample * n + lane;
            vec y = load(w->y + i), a = load(w->a + i), active = driving(s, y), rate = root(a);
            vec omega = load(w->image + i);
            /* Not 1 - gain, in which the digits of a small rate are lost. */
            vec decay = s->rectified ? select_lanes(y > 0.0f, rate, broadcast(1.0f)) : rate;
            vec own_y = (cotangent(s, s->grad_y, sample, lane) + 2.0f * active * a * omega) / decay;
            vec inhibition = active * (rate / (2.0f * a));
            vec own_a = cotangent(s, s->grad_a, sample, lane) - inhibition * own_y +
                        active * active * omega;
            unknown += (own_y - own_y) + (own_a - own_a);
            store_some(s->adjoint_y + at, own_y, n - lane);
            store_some(s->adjoint_a + at, own_a, n - lane);
            store_some(s->gained + at, (1.0f - rate) * own_y, n - lane);
            store_some(s->pooled + at, active * active * a, n - lane);
        }
        s->settled[sample] = sum_lanes(unknown) == 0.0f;
    }
}

int NAME(steady_adjoint)(const struct circuits *s, int64_t first, int64_t last)
{
    float *memory = reserve(pullback_floats(s));
    if (!memory)
        return 1;
    struct arena arena = {memory};
    struct pullback w = cut_pullback(&arena, s);
    for (int64_t row = first; row < last; row += s->tile) {
        const int64_t rows = last - row < s->tile ? last - row : s->tile;
        if (s->identity)
            close_adjoint(s, &w, row, rows);
        else
            start_adjoints(s, &w, row, rows);
    }
    if (!s->identity) {
        iterate_adjoints(s, &w, first, last);
        for (int64_t row = first; row < last; row += s->tile)
            finish(s, &w, row, last - row < s->tile ? last - row : s->tile);
    }
    free(memory);
    return 0;
}
