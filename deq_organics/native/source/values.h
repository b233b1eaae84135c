/* A look at the values of an argument. */

/* 1 where all `count` values are finite, else 0; the smallest of them, where they are. */
int NAME(look)(const float *values, int64_t count, float *smallest)
{
    vec unknown = {0}, least = broadcast(__builtin_inff());
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        vec x = load(values + i);
        /* 0, or NaN for what is not finite. */
        unknown += x - x;
        least = select_lanes(x < least, x, least);
    }
    float sum = sum_lanes(unknown), least_one = least[0];
    for (int lane = 1; lane < LANES; lane++)
        least_one = least[lane] < least_one ? least[lane] : least_one;
    for (; i < count; i++) {
        sum += values[i] - values[i];
        least_one = values[i] < least_one ? values[i] : least_one;
    }
    *smallest = least_one;
    return sum == 0.0f;
}
