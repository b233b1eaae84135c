/* Vectors of floats for one instruction set, and the functions of them that the kernels need.

   LANES floats make a vector. NaN passes through every function here. */

#include <stdint.h>
#include <string.h>

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t mask __attribute__((vector_size(4 * LANES)));

#define INLINE static inline __attribute__((always_inline))

INLINE vec load(const float *from)
{
    vec values;
    memcpy(&values, from, sizeof values);
    return values;
}

INLINE void store(float *to, vec values)
{
    memcpy(to, &values, sizeof values);
}

/* The first `count` floats, if that is fewer than a vector has; the rest is 0. */
INLINE vec load_some(const float *from, int64_t count)
{
    if (count >= LANES)
        return load(from);
    vec values = {0};
    if (count > 0)
        memcpy(&values, from, 4 * (size_t)count);
    return values;
}

INLINE void store_some(float *to, vec values, int64_t count)
{
    if (count >= LANES)
        store(to, values);
    else if (count > 0)
        memcpy(to, &values, 4 * (size_t)count);
}

/* Past the caches, for what is not read again soon; `to` is aligned to a vector. A call that has
   streamed ends with `fence`. */
INLINE void stream(float *to, vec values)
{
#if defined(__x86_64__) && LANES == 16
    __builtin_ia32_movntps512(to, values);
#elif defined(__x86_64__) && LANES == 8
    __builtin_ia32_movntps256(to, values);
#else
    store(to, values);
#endif
}

INLINE void fence(void)
{
#if defined(__x86_64__)
    __builtin_ia32_sfence();
#endif
}

/* Written out, for then compilers broadcast straight from memory. */
INLINE vec broadcast(float x)
{
#if LANES == 16
    return (vec){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
#elif LANES == 8
    return (vec){x, x, x, x, x, x, x, x};
#else
    return (vec){x, x, x, x};
#endif
}

INLINE vec select_lanes(mask where, vec one, vec other)
{
    return (vec)(((mask)one & where) | ((mask)other & ~where));
}

/* 0 where `where` is false. */
INLINE vec keep(mask where, vec values)
{
    return (vec)((mask)values & where);
}

INLINE mask positive(vec x)
{
    return ~(x <= 0.0f);
}

INLINE vec relu(vec x)
{
    return keep(~(x < 0.0f), x);
}

INLINE vec root(vec x)
{
    vec result;
    for (int lane = 0; lane < LANES; lane++)
        result[lane] = __builtin_sqrtf(x[lane]);
    return result;
}

/* exp(x), relative error below 2e-7 for |x| <= 87; the exponent saturates there. */
INLINE vec exponential(vec x)
{
    const vec shift = broadcast(12582912.0f); /* 1.5 2^23: adding it rounds to an integer. */
    x = select_lanes(x > 87.0f, broadcast(87.0f), x);
    x = select_lanes(x < -87.0f, broadcast(-87.0f), x);
    vec shifted = x * 1.44269504f + shift;
    vec whole = shifted - shift;
    mask exponent = ((mask)shifted - (mask)shift) << 23;
    vec rest = x - whole * 0.693145752f; /* ln 2 in two parts, the first one of few digits. */
    rest = rest - whole * 1.42860677e-6f;
    vec value = rest * (1.0f / 720.0f) + 1.0f / 120.0f;
    value = value * rest + 1.0f / 24.0f;
    value = value * rest + 1.0f / 6.0f;
    value = value * rest + 0.5f;
    value = value * rest + 1.0f;
    value = value * rest + 1.0f;
    return (vec)((mask)value + exponent);
}

/* 1 / (1 + exp(-x)) */
INLINE vec sigmoid(vec x)
{
    return 1.0f / (1.0f + exponential(-x));
}

INLINE vec magnitude(vec x)
{
    return (vec)((mask)x & 0x7fffffff);
}

/* The larger one, lane by lane; NaN where `x` is NaN. */
INLINE vec larger(vec x, vec other)
{
    return select_lanes(x <= other, other, x);
}

INLINE float sum_lanes(vec x)
{
    float sum = 0.0f;
    for (int lane = 0; lane < LANES; lane++)
        sum += x[lane];
    return sum;
}

INLINE float largest_lane(vec x)
{
    float largest = x[0];
    for (int lane = 1; lane < LANES; lane++)
        largest = x[lane] > largest ? x[lane] : largest;
    return largest;
}

/* The largest magnitude of `count` floats, infinite where there is NaN. */
INLINE float largest_of(const float *from, int64_t count)
{
    vec largest = {0};
    for (int64_t i = 0; i < count; i += LANES) {
        vec x = magnitude(load_some(from + i, count - i));
        largest = larger(select_lanes(x == x, x, broadcast(__builtin_inff())), largest);
    }
    return largest_lane(largest);
}
