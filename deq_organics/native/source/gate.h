/* Gated input drives, sigmoid(logit) d / |d|, row by row, and their gradients. */

/* The length of a row, in units of its largest magnitude so that squares leave no range. */
static float unit_length(const float *row, int64_t n, float largest)
{
    vec squares = {0};
    for (int64_t i = 0; i < n; i += LANES) {
        vec x = load_some(row + i, n - i) / largest;
        squares += x * x;
    }
    return __builtin_sqrtf(sum_lanes(squares));
}

int NAME(gate)(const struct gate *s, int64_t first, int64_t last)
{
    const int64_t n = s->neurons;
    for (int64_t row = first; row < last; row++) {
        const float *drive = s->drive + row * n, *logit = s->logit + row * n;
        const float largest = largest_of(drive, n);
        /* A zero drive stays zero, with derivative zero. */
        const float unit = largest > 0.0f ? largest : 1.0f;
        const float length = largest > 0.0f ? unit_length(drive, n, unit) : 1.0f;
        if (!s->grad) {
            for (int64_t i = 0; i < n; i += LANES) {
                vec direction = load_some(drive + i, n - i) / unit / length;
                store_some(s->gated + row * n + i,
                           sigmoid(load_some(logit + i, n - i)) * direction, n - i);
            }
            continue;
        }
        const float *grad = s->grad + row * n;
        vec along = {0};
        for (int64_t i = 0; i < n; i += LANES) {
            vec direction = load_some(drive + i, n - i) / unit / length;
            vec rate = sigmoid(load_some(logit + i, n - i)), pulled = load_some(grad + i, n - i);
            along += rate * pulled * direction;
            store_some(s->grad_logit + row * n + i, pulled * direction * rate * (1.0f - rate),
                       n - i);
        }
        const float overlap = sum_lanes(along);
        for (int64_t i = 0; i < n; i += LANES) {
            vec direction = load_some(drive + i, n - i) / unit / length;
            vec rate = sigmoid(load_some(logit + i, n - i)), pulled = load_some(grad + i, n - i);
            vec across = (rate * pulled - direction * overlap) / length / unit;
            store_some(s->grad_drive + row * n + i, largest > 0.0f ? across : (vec){0}, n - i);
        }
    }
    return 0;
}
