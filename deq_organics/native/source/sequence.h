/* A tile of samples through all steps of a sequence, and its adjoint back. */

#include <stdlib.h>

/* Floats of a variable's history that the caches are too small for. */
#define LARGE_HISTORY (1 << 19)

/* Scratch memory, cut from one allocation. */
struct arena {
    float *next;
};

static float *cut(struct arena *arena, int64_t floats)
{
    float *part = arena->next;
    arena->next += (floats + 15) / 16 * 16;
    return part;
}

/* Zeros, at the start of a line of the cache. */
static float *reserve(int64_t floats)
{
    size_t bytes = ((size_t)floats * 4 + 63) / 64 * 64;
    float *memory = aligned_alloc(64, bytes);
    if (memory)
        memset(memory, 0, bytes);
    return memory;
}

/* Parameters of the neurons, padded with zeros. */
struct rates {
    float *y, *a, *drive, *b, *b0, *diagonal;
};

static struct rates cut_rates(struct arena *arena, const struct sequence *s, int64_t width)
{
    size_t bytes = 4 * (size_t)s->neurons;
    struct rates r = {cut(arena, width), cut(arena, width), cut(arena, width),
                      cut(arena, width), cut(arena, width), cut(arena, width)};
    memcpy(r.y, s->step_y, bytes);
    memcpy(r.a, s->step_a, bytes);
    memcpy(r.drive, s->inhibitory_drive, bytes);
    if (s->dynamic) {
        memcpy(r.b, s->step_gains, bytes);
        memcpy(r.b0, s->step_gains + s->neurons, bytes);
    }
    if (s->identity)
        memcpy(r.diagonal, s->diagonal, bytes);
    return r;
}

/* Copy rows of n floats between memory of the caller and scratch. */
static void copy_rows(float *to, int64_t to_stride, const float *from, int64_t from_stride,
                      int64_t rows, int64_t n)
{
    for (int64_t row = 0; row < rows; row++)
        memcpy(to + row * to_stride, from + row * from_stride, 4 * (size_t)n);
}

static int64_t forward_depth(const struct sequence *s)
{
    return s->inputs + (s->identity ? 0 : s->neurons) + s->neurons +
           (s->dynamic ? 2 * (s->inputs + 2 * s->neurons) : 0);
}

static int64_t backward_depth(const struct sequence *s)
{
    return s->inputs + s->neurons + (s->identity ? 0 : s->neurons) +
           (s->dynamic ? 4 * s->neurons : 0);
}

/* The state of a tile, rows `row_stride` apart, with what products take of it. */
struct state {
    float *y, *a;
    float *active; /* drive(y) */
    float *pool;   /* active^2 relu(a) */
    float *recurrent, *gate, *baseline; /* u and f of the step that led there. */
};

INLINE vec drive(const struct sequence *s, vec y)
{
    return s->rectified ? relu(y) : y;
}

static void prepare(const struct sequence *s, struct state state, int64_t floats)
{
    for (int64_t i = 0; i < floats; i += LANES) {
        vec active = drive(s, load(state.y + i));
        store(state.active + i, active);
        store(state.pool + i, active * active * relu(load(state.a + i)));
    }
}

static void step_panel(const struct sequence *s, const struct rates *k, struct state now,
                       struct state next, float *b, float *b0, int64_t t, int64_t first,
                       int64_t rows, int64_t column, float *buffer)
{
    const int64_t n = s->neurons, m = s->inputs, stride = row_stride(n);
    const float *panel = s->packed_forward + column * forward_depth(s);
    const float *x = s->x + (t * s->batch + first) * m;
    const int64_t size = s->tile * PANEL;
    float *drives = buffer, *recurrent = buffer + size, *pools = buffer + 2 * size;
    float *gate = buffer + 3 * size, *baseline = buffer + 4 * size;
    const struct operand source = {s->after_weights ? now.y : now.active, stride, n};
    const struct operand pool = {now.pool, stride, n};
    const struct operand all[3] = {{x, m, m}, {now.y, stride, n}, {now.a, stride, n}};
    product(rows, all, 1, panel, drives);
    panel += m * PANEL;
    if (!s->identity) {
        product(rows, &source, 1, panel, recurrent);
        panel += n * PANEL;
    }
    product(rows, &pool, 1, panel, pools);
    panel += n * PANEL;
    if (s->dynamic) {
        product(rows, all, 3, panel, gate);
        panel += (m + 2 * n) * PANEL;
        product(rows, all, 3, panel, baseline);
    }
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t lane = 0; lane < PANEL; lane += LANES) {
            const int64_t j = column + lane, at = row * stride + j, in = row * PANEL + lane;
            vec y = load(now.y + at), a = load(now.a + at);
            vec gain = load(b + at), baseline_gain = load(b0 + at);
            vec z = drive(s, load(drives + in));
            vec u = s->identity ? load(k->diagonal + j) * load(source.values + at)
                                : load(recurrent + in);
            if (s->after_weights)
                u = relu(u);
            /* Not (1 - k) y, where rounding 1 - k would change small k. */
            vec new_y = y + (gain * z + u - root(relu(a)) * u - load(k->y + j) * y);
            vec new_a = a + (load(pools + in) + baseline_gain * baseline_gain * load(k->drive + j) -
                             load(k->a + j) * a);
            vec active = drive(s, new_y);
            store(next.y + at, new_y);
            store(next.a + at, new_a);
            store(next.active + at, active);
            store(next.pool + at, active * active * relu(new_a));
            store(next.recurrent + at, u);
            if (s->dynamic) {
                vec f = sigmoid(load(gate + in)), f0 = sigmoid(load(baseline + in));
                store(b + at, gain + load(k->b + j) * (f - gain));
                store(b0 + at, baseline_gain + load(k->b0 + j) * (f0 - baseline_gain));
                store(next.gate + at, f);
                store(next.baseline + at, f0);
            }
        }
    }
}

/* Write what is kept of a step, whole rows at a time. */
static void write_rows(const struct sequence *s, float *to, int64_t to_stride, const float *from,
                       int64_t rows)
{
    const int64_t n = s->neurons, stride = row_stride(n);
    /* A long history does not fit into the caches; it must not displace the weights there. */
    const int large = s->steps * s->batch * n > LARGE_HISTORY;
    if (!large || n % LANES || to_stride % LANES || (uintptr_t)to % sizeof(vec)) {
        copy_rows(to, to_stride, from, stride, rows, n);
        return;
    }
    for (int64_t row = 0; row < rows; row++)
        for (int64_t j = 0; j < n; j += LANES)
            stream(to + row * to_stride + j, load(from + row * stride + j));
}

static void keep_step(const struct sequence *s, struct state next, int64_t row, int64_t rows)
{
    const int64_t n = s->neurons;
    write_rows(s, s->ys + row * n, n, next.y, rows);
    if (!s->keep)
        return;
    write_rows(s, s->activities + row * n, n, next.a, rows);
    write_rows(s, s->recurrent + row * n, n, next.recurrent, rows);
    if (s->dynamic) {
        write_rows(s, s->gates + 2 * row * n, 2 * n, next.gate, rows);
        write_rows(s, s->gates + (2 * row + 1) * n, 2 * n, next.baseline, rows);
    }
}

static void forward_tile(const struct sequence *s, struct arena arena, int64_t first, int64_t rows)
{
    const int64_t n = s->neurons, stride = row_stride(n), width = padded(n);
    const int64_t matrix = s->tile * stride;
    float *kept[3] = {cut(&arena, matrix), cut(&arena, matrix), cut(&arena, matrix)};
    struct state states[2];
    for (int i = 0; i < 2; i++)
        states[i] = (struct state){cut(&arena, matrix), cut(&arena, matrix), cut(&arena, matrix),
                                   cut(&arena, matrix), kept[0], kept[1], kept[2]};
    float *b = cut(&arena, matrix), *b0 = cut(&arena, matrix);
    float *buffer = cut(&arena, 5 * s->tile * PANEL);
    const struct rates k = cut_rates(&arena, s, width);
    struct state now = states[0], next = states[1];
    copy_rows(now.y, stride, s->y + first * n, n, rows, n);
    copy_rows(now.a, stride, s->a + first * n, n, rows, n);
    copy_rows(b, stride, s->gains + 2 * first * n, 2 * n, rows, n);
    copy_rows(b0, stride, s->gains + (2 * first + 1) * n, 2 * n, rows, n);
    prepare(s, now, matrix);
    for (int64_t t = 0; t < s->steps; t++) {
        if (s->keep && t % s->segment == 0) {
            float *gains = s->checkpoints + (t / s->segment * s->batch + first) * 2 * n;
            copy_rows(gains, 2 * n, b, stride, rows, n);
            copy_rows(gains + n, 2 * n, b0, stride, rows, n);
        }
        for (int64_t column = 0; column < width; column += PANEL)
            step_panel(s, &k, now, next, b, b0, t, first, rows, column, buffer);
        keep_step(s, next, t * s->batch + first, rows);
        struct state old = now;
        now = next, next = old;
    }
    copy_rows(s->y + first * n, n, now.y, stride, rows, n);
    copy_rows(s->a + first * n, n, now.a, stride, rows, n);
    copy_rows(s->gains + 2 * first * n, 2 * n, b, stride, rows, n);
    copy_rows(s->gains + (2 * first + 1) * n, 2 * n, b0, stride, rows, n);
}

int NAME(sequence_forward)(const struct sequence *s, int64_t first, int64_t last)
{
    const int64_t stride = row_stride(s->neurons), width = padded(s->neurons);
    const int64_t floats = 13 * (s->tile * stride + 16) + 5 * s->tile * PANEL + 6 * (width + 16);
    float *memory = reserve(floats);
    if (!memory)
        return 1;
    for (int64_t row = first; row < last; row += s->tile) {
        int64_t rows = last - row < s->tile ? last - row : s->tile;
        forward_tile(s, (struct arena){memory}, row, rows);
    }
    free(memory);
    fence();
    return 0;
}
