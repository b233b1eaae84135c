/* Steady states: the fast iteration of deq_organics/steady_state/methods/normalized.py, sample by
   sample. A tile iterates together; who has converged leaves, and the next sample takes its place,
   so that products stay large and no result depends on the samples beside it. */

#define STEADY_DEPTH 5
/* As CURVATURE_PART in methods/acceleration.py, and _FAR_AWAY in methods/acceptance.py. */
#define CURVATURE_PART 0.3f
#define FAR_AWAY 1e8f
/* Half of the smallest number: what no residual can tell, see `Problem.graininess`. */
#define SMALLEST_STEP 0x1p-149f

/* A tile on its way; each row is one sample. */
struct search {
    struct acceleration known;
    float *drive; /* In units of its own size. */
    float *inhibitory; /* Behind the n-th: 1. */
    float *v, *y, *a, *s;
    float *target;   /* d + (1 - s) Wr drive(y) */
    float *residual; /* target - y */
    float *left, *image, *solution; /* What products take and give. */
    float *buffer;
    float *diagonal, *reference; /* One row each; behind the n-th: 0 and 1. */
    float *unit, *drive_length, *error; /* Of each row. */
    int64_t *sample, *steps;
};

static int64_t search_floats(const struct circuits *s)
{
    const int64_t stride = row_stride(s->neurons);
    return acceleration_floats(STEADY_DEPTH, s->tile, stride) + 11 * (s->tile * stride + 16) +
           s->tile * PANEL + 16 + 2 * (stride + 16) + 3 * (s->tile + 16) + 2 * (2 * s->tile + 16);
}

static struct search cut_search(struct arena *arena, const struct circuits *s)
{
    const int64_t stride = row_stride(s->neurons), size = s->tile * stride;
    struct search w;
    w.known = cut_acceleration(arena, STEADY_DEPTH, s->tile, stride, CURVATURE_PART);
    float **rows[] = {&w.drive, &w.inhibitory, &w.v,    &w.y,     &w.a,       &w.s,
                      &w.target, &w.residual,  &w.left, &w.image, &w.solution};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        *rows[i] = cut(arena, size);
    w.buffer = cut(arena, s->tile * PANEL);
    w.diagonal = cut(arena, stride);
    w.reference = cut(arena, stride);
    w.unit = cut(arena, s->tile);
    w.drive_length = cut(arena, s->tile);
    w.error = cut(arena, s->tile);
    w.sample = (int64_t *)(void *)cut(arena, 2 * s->tile);
    w.steps = (int64_t *)(void *)cut(arena, 2 * s->tile);
    for (int64_t i = 0; i < size; i++)
        w.inhibitory[i] = 1.0f;
    take_reference(s, w.diagonal, w.reference);
    return w;
}

INLINE vec driving(const struct circuits *s, vec y)
{
    return s->rectified ? relu(y) : y;
}

/* A sample's drives, and the unit of the first one. */
static float take_drives(const struct circuits *s, struct search *w, int64_t row, int64_t sample)
{
    const int64_t n = s->neurons, stride = row_stride(n), width = padded(n);
    float *drive = w->drive + row * stride;
    memcpy(drive, s->input_drive + sample * n, 4 * (size_t)n);
    memcpy(w->inhibitory + row * stride, s->inhibitory_drive + sample * s->drive_stride,
           4 * (size_t)n);
    const float unit = size_of(largest_of(drive, width));
    for (int64_t i = 0; i < width; i += LANES)
        store(drive + i, load(drive + i) / unit);
    return unit;
}

/* The first v of every sample, by the inverse at the reference; it waits in the place of y. */
static void start_samples(const struct circuits *s, struct search *w, int64_t first, int64_t rows)
{
    const int64_t n = s->neurons, stride = row_stride(n);
    for (int64_t row = 0; row < rows; row++)
        take_drives(s, w, row, first + row);
    multiply(s, rows, w->drive, inverse_panels(s), w->image, w->buffer);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < n; i += LANES)
            store_some(s->y + (first + row) * n + i,
                       load(w->reference + i) * load(w->image + row * stride + i), n - i);
}

static void enter(const struct circuits *s, struct search *w, int64_t row, int64_t sample)
{
    const int64_t n = s->neurons, stride = row_stride(n), width = padded(n);
    const float *drive = w->drive + row * stride;
    w->unit[row] = take_drives(s, w, row, sample);
    const float length = length_of(drive, width);
    /* Zero input: v is zero then, and exact. */
    w->drive_length[row] = length > 0.0f ? length : 1.0f;
    float *v = w->v + row * stride;
    memset(v, 0, 4 * (size_t)width);
    memcpy(v, s->y + sample * n, 4 * (size_t)n);
    w->sample[row] = sample;
    w->steps[row] = 0;
    w->known.count[row] = 0;
}

/* The circuits at v: y, a, s, the target of y and the relative error. */
static void evaluate(const struct circuits *s, struct search *w, int64_t rows)
{
    const int64_t stride = row_stride(s->neurons), width = padded(s->neurons);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = row * stride; i < row * stride + width; i += LANES) {
            vec active = driving(s, load(w->v + i));
            store(w->left + i, active * active);
        }
    multiply(s, rows, w->left, pool_panels(s), w->image, w->buffer);
    for (int64_t row = 0; row < rows; row++) {
        const float unit = w->unit[row] * w->unit[row];
        for (int64_t i = row * stride; i < row * stride + width; i += LANES) {
            vec a = load(w->inhibitory + i) + load(w->image + i) * unit;
            vec rate = root(a), y = load(w->v + i) / rate;
            store(w->a + i, a);
            store(w->s + i, rate);
            store(w->y + i, y);
            store(w->left + i, driving(s, y));
        }
    }
    multiply(s, rows, w->left, recurrent_panels(s), w->image, w->buffer);
    for (int64_t row = 0; row < rows; row++) {
        vec squares = {0}, states = {0};
        for (int64_t i = row * stride; i < row * stride + width; i += LANES) {
            vec y = load(w->y + i);
            vec target = load(w->drive + i) + (1.0f - load(w->s + i)) * load(w->image + i);
            vec residual = target - y;
            store(w->target + i, target);
            store(w->residual + i, residual);
            squares += residual * residual;
            states += y * y;
        }
        float scale = __builtin_sqrtf(sum_lanes(states));
        scale = scale > w->drive_length[row] ? scale : w->drive_length[row];
        w->error[row] = __builtin_sqrtf(sum_lanes(squares)) / scale;
    }
}

/* left = D(factor) of what is still to be corrected, in rows where neurons fire. */
static void weigh(const struct circuits *s, struct search *w, int64_t i, int64_t lane, vec rest)
{
    vec factor = row_factor(load(w->diagonal + lane), load(w->reference + lane),
                            1.0f - load(w->s + i));
    if (s->rectified)
        rest = keep(positive(load(w->target + i)), rest);
    store(w->left + i, factor * rest);
}

/* The next v, by the preconditioned residual and the acceleration. */
static void advance(const struct circuits *s, struct search *w, int64_t rows)
{
    const int64_t stride = row_stride(s->neurons), width = padded(s->neurons);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t lane = 0; lane < width; lane += LANES)
            weigh(s, w, row * stride + lane, lane, load(w->residual + row * stride + lane));
    multiply(s, rows, w->left, inverse_panels(s), w->solution, w->buffer);
    if (s->rectified)
        for (int64_t row = 0; row < rows; row++)
            for (int64_t i = row * stride; i < row * stride + width; i += LANES)
                store(w->solution + i, keep(positive(load(w->target + i)), load(w->solution + i)));
    multiply(s, rows, w->solution, recurrent_panels(s), w->image, w->buffer);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t lane = 0; lane < width; lane += LANES) {
            const int64_t i = row * stride + lane;
            vec rest = load(w->residual + i) - load(w->solution + i);
            weigh(s, w, i, lane, rest + (1.0f - load(w->s + i)) * load(w->image + i));
        }
    multiply(s, rows, w->left, inverse_panels(s), w->image, w->buffer);
    for (int64_t row = 0; row < rows; row++) {
        float *correction = w->image + row * stride;
        for (int64_t lane = 0; lane < width; lane += LANES) {
            const int64_t i = row * stride + lane;
            vec step = load(w->solution + i) + load(w->image + i);
            /* A silent neuron of the rectified model takes no part in the recurrence. */
            if (s->rectified)
                step = select_lanes(positive(load(w->target + i)), step, load(w->residual + i));
            store(correction + lane, load(w->s + i) * step);
        }
        propose(&w->known, row, stride, width, w->v + row * stride, correction);
        w->steps[row]++;
    }
}

/* Row `from` goes on in row `to`. */
static void move_search(const struct circuits *s, struct search *w, int64_t from, int64_t to)
{
    const int64_t stride = row_stride(s->neurons), width = padded(s->neurons);
    float *rows[] = {w->drive, w->inhibitory, w->v, w->y, w->a, w->s, w->target, w->residual};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        memcpy(rows[i] + to * stride, rows[i] + from * stride, 4 * (size_t)width);
    w->unit[to] = w->unit[from];
    w->drive_length[to] = w->drive_length[from];
    w->error[to] = w->error[from];
    w->sample[to] = w->sample[from];
    w->steps[to] = w->steps[from];
    move_acceleration(&w->known, from, to, stride, width);
}

static void leave(const struct circuits *s, struct search *w, int64_t row)
{
    const int64_t n = s->neurons, stride = row_stride(n), sample = w->sample[row];
    for (int64_t i = 0; i < n; i += LANES)
        store_some(s->y + sample * n + i, load(w->y + row * stride + i) * w->unit[row], n - i);
    memcpy(s->a + sample * n, w->a + row * stride, 4 * (size_t)n);
    s->iterations[sample] = w->steps[row];
    s->settled[sample] = w->error[row] <= s->tolerance;
}

static void iterate(const struct circuits *s, struct search *w, int64_t first, int64_t last)
{
    int64_t next = first, rows = 0;
    for (;;) {
        advance(s, w, rows);
        while (rows < s->tile && next < last)
            enter(s, w, rows++, next++);
        if (rows == 0)
            return;
        evaluate(s, w, rows);
        for (int64_t row = rows - 1; row >= 0; row--) {
            /* An error that is no number will stay so. */
            if (w->error[row] > s->tolerance && w->steps[row] < s->most_steps)
                continue;
            leave(s, w, row);
            if (--rows > row)
                move_search(s, w, rows, row);
        }
    }
}

/* The fixed points that the samples have with Wr = I. */
static void close_form(const struct circuits *s, struct search *w, int64_t first, int64_t rows)
{
    const int64_t n = s->neurons, stride = row_stride(n), width = padded(n);
    for (int64_t row = 0; row < rows; row++) {
        w->unit[row] = take_drives(s, w, row, first + row);
        for (int64_t i = row * stride; i < row * stride + width; i += LANES) {
            vec active = driving(s, load(w->drive + i));
            store(w->left + i, active * active);
        }
    }
    multiply(s, rows, w->left, pool_panels(s), w->image, w->buffer);
    for (int64_t row = 0; row < rows; row++) {
        const int64_t sample = first + row;
        const float unit = w->unit[row];
        for (int64_t lane = 0; lane < n; lane += LANES) {
            const int64_t i = row * stride + lane;
            vec drive = load(w->drive + i) * unit;
            /* In this order the square alone leaves no range. */
            vec a = load(w->inhibitory + i) + load(w->image + i) * unit * unit;
            vec y = driving(s, drive) / root(a);
            if (s->rectified)
                y -= relu(-drive);
            store_some(s->y + sample * n + lane, y, n - lane);
            store_some(s->a + sample * n + lane, a, n - lane);
        }
        s->iterations[sample] = 0;
        s->settled[sample] = 1;
    }
}

/* The residual of what is returned, `Problem.relative_residual`, and whether torch would accept it
   (methods/acceptance.py). */
static void judge(const struct circuits *s, struct search *w, int64_t first, int64_t rows)
{
    const int64_t n = s->neurons, stride = row_stride(n), width = padded(n);
    for (int64_t row = 0; row < rows; row++) {
        float *y = w->y + row * stride, *a = w->a + row * stride, *d = w->drive + row * stride;
        memcpy(y, s->y + (first + row) * n, 4 * (size_t)n);
        memcpy(a, s->a + (first + row) * n, 4 * (size_t)n);
        memcpy(d, s->input_drive + (first + row) * n, 4 * (size_t)n);
        memset(y + n, 0, 4 * (size_t)(width - n));
        memset(d + n, 0, 4 * (size_t)(width - n));
        for (int64_t i = n; i < width; i++)
            a[i] = 1.0f;
        memcpy(w->inhibitory + row * stride,
               s->inhibitory_drive + (first + row) * s->drive_stride, 4 * (size_t)n);
        for (int64_t i = row * stride; i < row * stride + width; i += LANES) {
            vec active = driving(s, load(w->y + i));
            store(w->left + i, active);
            store(w->s + i, root(load(w->a + i)));
            store(w->solution + i, active * load(w->s + i));
        }
    }
    float *recurrent = w->target, *pool = w->image;
    if (s->identity)
        recurrent = w->left;
    else
        multiply(s, rows, w->left, recurrent_panels(s), recurrent, w->buffer);
    for (int64_t row = 0; row < rows; row++) {
        float *normalized = w->solution + row * stride;
        w->unit[row] = size_of(largest_of(normalized, width));
        for (int64_t i = 0; i < width; i += LANES)
            store(normalized + i, load(normalized + i) * (load(normalized + i) / w->unit[row]));
    }
    multiply(s, rows, w->solution, pool_panels(s), pool, w->buffer);
    const float hidden = SMALLEST_STEP * __builtin_sqrtf((float)n);
    const float pooling = __builtin_sqrtf(s->largest_weight);
    for (int64_t row = 0; row < rows; row++) {
        const float *d = w->drive + row * stride, *c = w->inhibitory + row * stride;
        const float *y = w->y + row * stride, *a = w->a + row * stride;
        const float drive = largest_of(d, width), state = largest_of(y, width);
        const float size = size_of(drive > state ? drive : state);
        const vec unit = broadcast(w->unit[row]);
        vec squares = {0}, lengths_y = {0}, lengths_d = {0};
        for (int64_t i = 0; i < width; i += LANES) {
            vec rate = load(w->s + row * stride + i);
            vec r = load(d + i) - load(y + i) + (1.0f - rate) * load(recurrent + row * stride + i);
            r /= size;
            squares += r * r;
            lengths_y += load(y + i) / size * (load(y + i) / size);
            lengths_d += load(d + i) / size * (load(d + i) / size);
            vec pooled = load(pool + row * stride + i) * unit;
            store(w->residual + row * stride + i,
                  (load(c + i) - load(a + i) + pooled) / load(a + i));
        }
        /* Behind the n-th c = a = 1 and W is 0. */
        const float error_a = largest_of(w->residual + row * stride, width);
        float length = sum_lanes(lengths_y), other = sum_lanes(lengths_d);
        length = __builtin_sqrtf(length > other ? length : other);
        float residual = __builtin_sqrtf(sum_lanes(squares)) / (length > 0.0f ? length : 1.0f);
        float smallest_a = a[0], largest_a = a[0], smallest_c = c[0], largest_c = c[0];
        for (int64_t i = 1; i < n; i++) {
            smallest_a = a[i] < smallest_a ? a[i] : smallest_a;
            largest_a = a[i] > largest_a ? a[i] : largest_a;
            smallest_c = c[i] < smallest_c ? c[i] : smallest_c;
            largest_c = c[i] > largest_c ? c[i] : largest_c;
        }
        const float largest = drive > state ? drive : state;
        const float grain = largest > 0.0f ? hidden / largest : 0.0f;
        const float grain_a = hidden / smallest_a;
        /* A comparison with NaN is false: it stays. */
        residual = residual <= error_a ? error_a : residual;
        residual = residual <= grain ? grain : residual;
        residual = residual <= grain_a ? grain_a : residual;
        s->residual[first + row] = residual;
        const float reach_y = drive + (pooling > 0.0f ? 1.0f / pooling : 0.0f);
        const float reach_a = 1.0f + largest_c + pooling * drive * (pooling * drive);
        s->settled[first + row] &= residual <= s->accepted && smallest_c > 0.0f &&
                                   state <= FAR_AWAY * reach_y && largest_a <= FAR_AWAY * reach_a;
    }
}

int NAME(steady_state)(const struct circuits *s, int64_t first, int64_t last)
{
    float *memory = reserve(search_floats(s));
    if (!memory)
        return 1;
    struct arena arena = {memory};
    struct search w = cut_search(&arena, s);
    for (int64_t row = first; row < last; row += s->tile) {
        const int64_t rows = last - row < s->tile ? last - row : s->tile;
        if (s->identity)
            close_form(s, &w, row, rows);
        else
            start_samples(s, &w, row, rows);
    }
    if (!s->identity)
        iterate(s, &w, first, last);
    for (int64_t row = first; row < last; row += s->tile)
        judge(s, &w, row, last - row < s->tile ? last - row : s->tile);
    free(memory);
    return 0;
}
