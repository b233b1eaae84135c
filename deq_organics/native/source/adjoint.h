/* The way back of a tile: one segment of steps at a time, newest first. */

/* What the steps of a segment leave for its gradients, rows `row_stride` apart: the samples of its
   first step, then those of the next one. */
struct emitted {
    float *recurrent; /* Adjoint of u, before its rectifier. */
    float *activity;  /* Of a'. */
    float *gate, *baseline; /* Of the gates before their sigmoid, without k. */
    float *drive;     /* Of z, before its rectifier. */
    float *source, *pool, *y, *a; /* What the weights act on. */
};

/* The gains before each step of a segment, and the adjoints after the step at hand. */
struct sweep {
    struct rates k;
    struct emitted out;
    float *b, *b0;               /* A matrix for each step; one in all where they are fixed. */
    float *adjoint_y, *next_y;   /* v, and v one step before. */
    float *next_a;               /* w one step before the segment. */
    float *adjoint_b, *adjoint_b0;
    float *drives; /* z of a step, panel by panel. */
    float *buffer;
    float *sums; /* Five rows of the gradients. */
};

struct gradients {
    float *recurrent, *normalization, *gate_y, *gate_a, *baseline_y, *baseline_a;
    float *input, *gate_x, *baseline_x;
    float *sums;
};

static struct gradients split_gradients(const struct sequence *s)
{
    const int64_t width = padded(s->neurons);
    const int64_t square = s->neurons * width, inputs = s->inputs * width;
    struct gradients g;
    g.recurrent = s->gradients;
    g.normalization = g.recurrent + (s->identity ? width : square);
    g.gate_y = g.normalization + square;
    g.gate_a = g.gate_y + (s->dynamic ? square : 0);
    g.baseline_y = g.gate_a + (s->dynamic ? square : 0);
    g.baseline_a = g.baseline_y + (s->dynamic ? square : 0);
    g.input = g.baseline_a + (s->dynamic ? square : 0);
    g.gate_x = g.input + inputs;
    g.baseline_x = g.gate_x + (s->dynamic ? inputs : 0);
    g.sums = g.baseline_x + (s->dynamic ? inputs : 0);
    return g;
}

/* Ask for a line of each row's memory while there is other work to do. */
INLINE void fetch(const float *from, int64_t rows, int64_t stride)
{
    for (int64_t row = 0; row < rows; row++)
        __builtin_prefetch(from + row * stride);
}

/* The rows of a step among those that a segment keeps. */
INLINE float *rows_of(float *all, const struct sequence *s, int64_t rows, int64_t step)
{
    return all + step * rows * row_stride(s->neurons);
}

static void step_gains(const struct sequence *s, struct sweep *w, int64_t first, int64_t rows,
                       int64_t start, int64_t stop)
{
    const int64_t n = s->neurons, stride = row_stride(n), width = padded(n);
    const float *gains = s->checkpoints + (start / s->segment * s->batch + first) * 2 * n;
    copy_rows(w->b, stride, gains, 2 * n, rows, n);
    copy_rows(w->b0, stride, gains + n, 2 * n, rows, n);
    if (!s->dynamic)
        return;
    for (int64_t t = start; t + 1 < stop; t++) {
        const float *b = rows_of(w->b, s, rows, t - start);
        const float *b0 = rows_of(w->b0, s, rows, t - start);
        float *next_b = rows_of(w->b, s, rows, t - start + 1);
        float *next_b0 = rows_of(w->b0, s, rows, t - start + 1);
        for (int64_t row = 0; row < rows; row++) {
            const float *gates = s->gates + (t * s->batch + first + row) * 2 * n;
            for (int64_t j = 0; j < width; j += LANES) {
                const int64_t at = row * stride + j;
                vec gain = load(b + at), baseline = load(b0 + at);
                vec f = load_some(gates + j, n - j), f0 = load_some(gates + n + j, n - j);
                store(next_b + at, gain + load(w->k.b + j) * (f - gain));
                store(next_b0 + at, baseline + load(w->k.b0 + j) * (f0 - baseline));
            }
        }
    }
}

INLINE void add_to(float *sum, vec value)
{
    store(sum, load(sum) + value);
}

/* All of a step that needs no product with the adjoints. It reads what was kept row by row, in the
   order in which it lies in memory. */
static void emit_step(const struct sequence *s, struct sweep *w, int64_t t, int64_t step,
                      int64_t first, int64_t rows)
{
    const int64_t n = s->neurons, m = s->inputs, stride = row_stride(n), width = padded(n);
    const int64_t own = s->dynamic ? step : 0;
    const struct operand x = {s->x + (t * s->batch + first) * m, m, m};
    const float *y = t ? s->ys + (t - 1) * s->batch * n : s->first_y;
    const float *a = t ? s->activities + (t - 1) * s->batch * n : s->first_a;
    float *sums = w->sums;
    for (int64_t column = 0; column < width; column += PANEL)
        product(rows, &x, 1, s->packed_backward + column * backward_depth(s),
                w->drives + column * s->tile);
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t j = 0; j < width; j += LANES) {
            const int64_t count = n - j, lane = j % PANEL;
            const int64_t at = row * stride + j, slot = step * rows * stride + at;
            const int64_t gained = own * rows * stride + at;
            const int64_t from = (t * s->batch + first + row) * n + j;
            vec y_now = load_some(y + (first + row) * n + j, count);
            vec a_now = load_some(a + (first + row) * n + j, count);
            vec v = load(w->adjoint_y + at), adjoint_a = load(w->out.activity + slot);
            if (s->grad_ys)
                v += load_some(s->grad_ys + from, count);
            store(w->adjoint_y + at, v);
            vec active = drive(s, y_now), rest = relu(a_now);
            vec adjoint_u = v - root(rest) * v;
            if (s->after_weights)
                adjoint_u = keep(positive(load_some(s->recurrent + from, count)), adjoint_u);
            store(w->out.recurrent + slot, adjoint_u);
            store(w->out.source + slot, s->after_weights ? y_now : active);
            store(w->out.pool + slot, active * active * rest);
            vec gain = load(w->b + gained), baseline = load(w->b0 + gained);
            vec z = load(w->drives + (j - lane) * s->tile + row * PANEL + lane);
            vec adjoint_z = v * gain;
            if (s->rectified) {
                adjoint_z = keep(positive(z), adjoint_z);
                z = relu(z);
            }
            store(w->out.drive + slot, adjoint_z);
            add_to(sums + j, v * y_now);
            add_to(sums + width + j, adjoint_a * a_now);
            add_to(sums + 2 * width + j, baseline * baseline * adjoint_a);
            vec b = load(w->adjoint_b + at), b0 = load(w->adjoint_b0 + at);
            vec next_b = z * v;
            vec next_b0 = 2.0f * baseline * load(w->k.drive + j) * adjoint_a;
            if (s->dynamic) {
                const float *gates = s->gates + (t * s->batch + first + row) * 2 * n + j;
                vec f = load_some(gates, count), f0 = load_some(gates + n, count);
                store(w->out.gate + slot, f * (1.0f - f) * b);
                store(w->out.baseline + slot, f0 * (1.0f - f0) * b0);
                store(w->out.y + slot, y_now);
                store(w->out.a + slot, a_now);
                add_to(sums + 3 * width + j, (f - gain) * b);
                add_to(sums + 4 * width + j, (f0 - baseline) * b0);
                next_b -= load(w->k.b + j) * b;
                next_b0 -= load(w->k.b0 + j) * b0;
            }
            store(w->adjoint_b + at, b + next_b);
            store(w->adjoint_b0 + at, b0 + next_b0);
        }
    }
}

/* The adjoints of one panel of neurons before a step, from those after it. */
static void pull_panel(const struct sequence *s, struct sweep *w, int64_t t, int64_t step,
                       int64_t first, int64_t rows, int64_t column, float *next_a)
{
    const int64_t n = s->neurons, stride = row_stride(n), size = s->tile * PANEL;
    const float *y = t ? s->ys + (t - 1) * s->batch * n : s->first_y;
    const float *a = t ? s->activities + (t - 1) * s->batch * n : s->first_a;
    const float *panel = s->packed_backward + column * backward_depth(s) + s->inputs * PANEL;
    const struct operand pooled = {rows_of(w->out.activity, s, rows, step), stride, n};
    const struct operand recurrent = {rows_of(w->out.recurrent, s, rows, step), stride, n};
    const struct operand gates[2] = {{rows_of(w->out.gate, s, rows, step), stride, n},
                                     {rows_of(w->out.baseline, s, rows, step), stride, n}};
    float *from_pool = w->buffer, *from_u = w->buffer + size;
    float *gate_y = w->buffer + 2 * size, *gate_a = w->buffer + 3 * size;
    /* What the step before reads. */
    const int64_t ahead = ((t - 1) * s->batch + first) * n + column;
    const int64_t fetched = t > 0 ? rows : 0, before = t > 1 ? rows : 0;
    fetch(s->recurrent + ahead, fetched, n);
    fetch(s->ys + ahead - s->batch * n, before, n);
    product(rows, &pooled, 1, panel, from_pool);
    panel += n * PANEL;
    fetch(s->activities + ahead - s->batch * n, before, n);
    if (s->grad_ys)
        fetch(s->grad_ys + ahead, fetched, n);
    if (!s->identity) {
        product(rows, &recurrent, 1, panel, from_u);
        panel += n * PANEL;
    }
    if (s->dynamic) {
        const float *earlier = s->gates + 2 * (ahead - column) + column;
        fetch(earlier, fetched, 2 * n);
        product(rows, gates, 2, panel, gate_y);
        panel += 2 * n * PANEL;
        fetch(earlier + n, fetched, 2 * n);
        product(rows, gates, 2, panel, gate_a);
    }
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t lane = 0; lane < PANEL; lane += LANES) {
            const int64_t j = column + lane, at = row * stride + j, in = row * PANEL + lane;
            const int64_t from = (t * s->batch + first + row) * n + j, count = n - j;
            vec y_now = load_some(y + (first + row) * n + j, count);
            vec a_now = load_some(a + (first + row) * n + j, count);
            vec u = load_some(s->recurrent + from, count);
            vec v = load(w->adjoint_y + at), adjoint_a = load(pooled.values + at);
            vec active = drive(s, y_now), rest = relu(a_now), pool = load(from_pool + in);
            vec new_y = s->identity ? load(recurrent.values + at) * load(w->k.diagonal + j)
                                    : load(from_u + in);
            new_y += 2.0f * active * rest * pool;
            if (s->rectified && !s->after_weights)
                new_y = keep(positive(y_now), new_y);
            /* Where a <= 0 neither a+ nor the pool changes with it. */
            vec new_a = keep(positive(a_now),
                             active * active * pool - 0.5f * u * v / root(rest));
            if (s->dynamic) {
                new_y += load(gate_y + in);
                new_a += load(gate_a + in);
            }
            store(w->next_y + at, v + (new_y - load(w->k.y + j) * v));
            store(next_a + at, adjoint_a + (new_a - load(w->k.a + j) * adjoint_a));
        }
    }
}

static void add_gradients(const struct sequence *s, struct sweep *w, struct gradients g,
                          int64_t start, int64_t stop, int64_t first, int64_t rows)
{
    const int64_t n = s->neurons, m = s->inputs, stride = row_stride(n), width = padded(n);
    const int64_t depth = (stop - start) * rows;
    const struct emitted *e = &w->out;
    if (s->identity) {
        for (int64_t j = 0; j < width; j += LANES) {
            vec sum = {0};
            for (int64_t row = 0; row < depth; row++)
                sum += load(e->recurrent + row * stride + j) * load(e->source + row * stride + j);
            add_to(g.recurrent + j, sum);
        }
    } else {
        add_gradient(n, width, e->recurrent, stride, e->source, stride, depth, g.recurrent, width);
    }
    add_gradient(n, width, e->activity, stride, e->pool, stride, depth, g.normalization, width);
    if (s->dynamic) {
        add_gradient(n, width, e->gate, stride, e->y, stride, depth, g.gate_y, width);
        add_gradient(n, width, e->gate, stride, e->a, stride, depth, g.gate_a, width);
        add_gradient(n, width, e->baseline, stride, e->y, stride, depth, g.baseline_y, width);
        add_gradient(n, width, e->baseline, stride, e->a, stride, depth, g.baseline_a, width);
    }
    for (int64_t t = start; t < stop; t++) {
        const float *x = s->x + (t * s->batch + first) * m;
        const int64_t slot = (t - start) * rows * stride;
        add_gradient(m, width, x, m, e->drive + slot, stride, rows, g.input, width);
        if (s->dynamic) {
            add_gradient(m, width, x, m, e->gate + slot, stride, rows, g.gate_x, width);
            add_gradient(m, width, x, m, e->baseline + slot, stride, rows, g.baseline_x, width);
        }
    }
    for (int64_t j = 0; j < 5 * width; j += LANES) {
        add_to(g.sums + j, load(w->sums + j));
        store(w->sums + j, (vec){0});
    }
}

static void pull_inputs(const struct sequence *s, struct sweep *w, int64_t t, int64_t step,
                        int64_t first, int64_t rows)
{
    const int64_t n = s->neurons, m = s->inputs, stride = row_stride(n);
    const int count = s->dynamic ? 3 : 1;
    const struct operand all[3] = {{rows_of(w->out.drive, s, rows, step), stride, n},
                                   {rows_of(w->out.gate, s, rows, step), stride, n},
                                   {rows_of(w->out.baseline, s, rows, step), stride, n}};
    for (int64_t column = 0; column < m; column += PANEL) {
        product(rows, all, count, s->packed_inputs + column * count * n, w->buffer);
        for (int64_t row = 0; row < rows; row++) {
            float *to = s->grad_x + (t * s->batch + first + row) * m + column;
            for (int64_t lane = 0; lane < PANEL; lane += LANES)
                store_some(to + lane, load(w->buffer + row * PANEL + lane), m - column - lane);
        }
    }
}

static void adjoint_tile(const struct sequence *s, struct arena arena, int64_t first, int64_t rows)
{
    const int64_t n = s->neurons, stride = row_stride(n), width = padded(n);
    const int64_t matrix = s->tile * stride, segment = s->segment * matrix;
    const int64_t gains = s->dynamic ? segment : matrix;
    struct sweep w;
    w.k = cut_rates(&arena, s, width);
    float **kept[9] = {&w.out.recurrent, &w.out.activity, &w.out.gate, &w.out.baseline,
                       &w.out.drive, &w.out.source, &w.out.pool, &w.out.y, &w.out.a};
    for (int i = 0; i < 9; i++)
        *kept[i] = cut(&arena, segment);
    w.b = cut(&arena, gains), w.b0 = cut(&arena, gains);
    w.adjoint_y = cut(&arena, matrix), w.next_y = cut(&arena, matrix);
    w.next_a = cut(&arena, matrix);
    w.adjoint_b = cut(&arena, matrix), w.adjoint_b0 = cut(&arena, matrix);
    w.drives = cut(&arena, s->tile * width);
    w.buffer = cut(&arena, 4 * s->tile * PANEL);
    w.sums = cut(&arena, 5 * width);
    const struct gradients g = split_gradients(s);
    copy_rows(w.adjoint_y, stride, s->adjoint_y + first * n, n, rows, n);
    copy_rows(w.next_a, stride, s->adjoint_a + first * n, n, rows, n);
    copy_rows(w.adjoint_b, stride, s->adjoint_gains + 2 * first * n, 2 * n, rows, n);
    copy_rows(w.adjoint_b0, stride, s->adjoint_gains + (2 * first + 1) * n, 2 * n, rows, n);
    for (int64_t stop = s->steps; stop > 0;) {
        const int64_t start = (stop - 1) / s->segment * s->segment;
        step_gains(s, &w, first, rows, start, stop);
        float *last = rows_of(w.out.activity, s, rows, stop - 1 - start);
        memcpy(last, w.next_a, 4 * (size_t)(rows * stride));
        for (int64_t t = stop - 1; t >= start; t--) {
            const int64_t step = t - start;
            float *next_a = step ? rows_of(w.out.activity, s, rows, step - 1) : w.next_a;
            emit_step(s, &w, t, step, first, rows);
            for (int64_t column = 0; column < width; column += PANEL)
                pull_panel(s, &w, t, step, first, rows, column, next_a);
            if (s->grad_x)
                pull_inputs(s, &w, t, step, first, rows);
            float *old = w.adjoint_y;
            w.adjoint_y = w.next_y, w.next_y = old;
        }
        add_gradients(s, &w, g, start, stop, first, rows);
        stop = start;
    }
    copy_rows(s->adjoint_y + first * n, n, w.adjoint_y, stride, rows, n);
    copy_rows(s->adjoint_a + first * n, n, w.next_a, stride, rows, n);
    copy_rows(s->adjoint_gains + 2 * first * n, 2 * n, w.adjoint_b, stride, rows, n);
    copy_rows(s->adjoint_gains + (2 * first + 1) * n, 2 * n, w.adjoint_b0, stride, rows, n);
}

int NAME(sequence_adjoint)(const struct sequence *s, int64_t first, int64_t last)
{
    const int64_t matrix = s->tile * row_stride(s->neurons), width = padded(s->neurons);
    const int64_t floats = (s->segment * 11 + 8) * (matrix + 16) + 4 * s->tile * PANEL +
                           11 * (width + 16);
    float *memory = reserve(floats);
    if (!memory)
        return 1;
    for (int64_t row = first; row < last; row += s->tile) {
        int64_t rows = last - row < s->tile ? last - row : s->tile;
        adjoint_tile(s, (struct arena){memory}, row, rows);
    }
    free(memory);
    return 0;
}
