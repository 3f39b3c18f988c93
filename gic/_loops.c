/* The inner loops of gic, built with the wheel where there is a compiler (hatch_build.py) and called from Python
 * (loops.py). C99 without any library: memcpy is a cast. What asks for __GNUC__ only makes it faster. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef _WIN32
#define EXPORTED __declspec(dllexport)
#else
#define EXPORTED
#endif

#ifdef __GNUC__
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

/* --- the entropy coder: the same numbers as bitstream/rans.py, more than ten times as fast ---------------------------
 * Every read of `words`, `edges` and `found` stays within what the caller says is there. */

/* Codes the events from the last to the first; the words come out in the order in which a decoder would meet them last.
 * Returns how many there are, at most `count`. */
EXPORTED size_t gic_rans_encode(uint64_t *state, const int32_t *starts, const int32_t *frequencies, size_t count,
                                uint16_t *words)
{
    uint64_t x = *state;
    size_t written = 0;
    while (count-- > 0) {
        const uint64_t frequency = (uint64_t)frequencies[count];
        if (x >= frequency << 24) {
            words[written++] = (uint16_t)x;
            x >>= 16;
        }
        x = (x / frequency << 16) + x % frequency + (uint64_t)starts[count];
    }
    *state = x;
    return written;
}

/* Reads `count` events; row t of `edges` is edges[rows[t]] = 0 ... edges[rows[t + 1] - 1] = 65536, ascending.
 * Returns how many of the `available` words were read. */
EXPORTED size_t gic_rans_decode(uint64_t *state, const uint16_t *words, size_t available, const int32_t *edges,
                                const int32_t *rows, const int32_t *tables, size_t count, int32_t *found)
{
    uint64_t x = *state;
    size_t read = 0;
    for (size_t i = 0; i < count; i++) {
        const int32_t *row = edges + rows[tables[i]];
        const int32_t slot = (int32_t)(x & 0xFFFF);
        int32_t low = 0, high = rows[tables[i] + 1] - rows[tables[i]] - 1; /* row[low] <= slot < row[high] */
        while (high - low > 1) {
            const int32_t middle = (low + high) / 2;
            if (row[middle] <= slot)
                low = middle;
            else
                high = middle;
        }
        found[i] = low;
        x = (uint64_t)(row[low + 1] - row[low]) * (x >> 16) + (uint64_t)(slot - row[low]);
        if (x < (uint64_t)1 << 24 && read < available)
            x = x << 16 | words[read++];
    }
    *state = x;
    return read;
}

/* --- the posterior mean: what method/posterior.py computes, arranged for a loop -------------------------------------
 *
 * The mean m of a standard normal truncated to the cell [a, b] = [c - h, c + h], c >= 0, follows from the hazard
 * r(x) = phi(x) / (1 - Phi(x)) at both ends. With fall = phi(b) / phi(a) = exp(-2ch) and
 * Z = phi(a) / r(a) - phi(b) / r(b),
 *
 *     m = (phi(a) - phi(b)) / Z = (1 - fall) r(a) r(b) / (r(b) - fall r(a))
 *
 *     centre, a <= 0:  this, with r(a) = phi(a) r(-a) / (r(-a) - phi(a)) from r at -a >= 0
 *     tail, a > 0:     m - a, with the excess e(x) = r(x) - x, so that no large a is taken from a large m:
 *                      m - a = (r(b) e(a) - fall r(a) (e(b) + 2h)) / (r(b) - fall r(a))
 *     narrow, h << 1:  m - c = -h L(ch),  L(x) = coth x - 1/x
 *
 * An error of e counts at most 1 / (4 h^2) times in units of the cell's width: 2.5e5 times where the cell is all but
 * narrow. */

#define NARROW 1e-3 /* as in method/posterior.py */
#define SQRT_1_OVER_2PI 0x1.9884533d43651p-2
#define LOG2_E 0x1.71547652b82fep+0
#define LN_2 0x1.62e42fefa39efp-1
#define ROUND 0x1.8p52     /* a number of less than 2^51 plus this ends in its nearest integer */
#define EXP_LIMIT 700.0    /* exp(-x) of more than this is exp(-700) */

enum { BLOCK = 128 };

/* exp(-x) for x >= 0, with a relative error below 1e-12: 2^k times the Taylor series at the rest, at most ln 2 / 2. */
INLINE double exp_minus(double x)
{
    const double clipped = x < EXP_LIMIT ? x : EXP_LIMIT;
    const double shifted = ROUND - clipped * LOG2_E; /* its last bits are k */
    const double r = -clipped - (shifted - ROUND) * LN_2;
    double value = 1.0 / 3628800;
    uint64_t bits, k;
    value = value * r + 1.0 / 362880;
    value = value * r + 1.0 / 40320;
    value = value * r + 1.0 / 5040;
    value = value * r + 1.0 / 720;
    value = value * r + 1.0 / 120;
    value = value * r + 1.0 / 24;
    value = value * r + 1.0 / 6;
    value = value * r + 1.0 / 2;
    value = value * r + 1.0;
    value = value * r + 1.0;
    memcpy(&bits, &value, sizeof bits);
    memcpy(&k, &shifted, sizeof k);
    bits += k << 52;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* e(x) for x >= 0, given 1 / (x + 4), with a relative error below 3e-13: e(x) (x + 4) is a polynomial of
 * t = (x - 4) / (x + 4), as Shepherd and Laframboise (Math. Comp. 36, 1981) have it for erfcx. Its terms are the first
 * 21 of the Chebyshev series in t, from the values of e(x) = sqrt(2 / pi) / (exp(x^2 / 2) erfc(x / sqrt 2)) - x at 60
 * Chebyshev nodes by mpmath, written in powers of t. runtime/posterior.py has the same numbers. */
INLINE double excess(double x, double inverse)
{
    const double t = (x - 4.0) * inverse;
    double value = 2.3853609199882302e-06;
    value = value * t - 2.354821373574006e-06;
    value = value * t - 2.0595301260331333e-05;
    value = value * t + 2.5071114849178068e-05;
    value = value * t + 9.151093279527219e-05;
    value = value * t - 0.0001484639406699738;
    value = value * t - 0.00027886922048478327;
    value = value * t + 0.0006636078765975714;
    value = value * t + 0.0005895240328800263;
    value = value * t - 0.0024847504828612575;
    value = value * t - 0.0003718117039490155;
    value = value * t + 0.00796106992181125;
    value = value * t - 0.0044889609355427814;
    value = value * t - 0.020800388840493077;
    value = value * t + 0.03165657300074091;
    value = value * t + 0.03370366084522396;
    value = value * t - 0.1382244943527814;
    value = value * t + 0.06751792824469077;
    value = value * t + 0.40195670387719584;
    value = value * t - 1.1822045015237386;
    value = value * t + 1.8048571559154782;
    return value * inverse;
}

/* L(x), given exp(-2x). */
INLINE double langevin(double x, double fall)
{
    const double s = x * x;
    const double series = x * (1.0 / 3 + s * (-1.0 / 45 + s * (2.0 / 945 + s * (-1.0 / 4725 + s * (2.0 / 93555)))));
    const double closed = (1.0 + fall) / (1.0 - fall) - 1.0 / x;
    return x < 0.3 ? series : closed;
}

/* The means of BLOCK cells. Every element takes all steps, so that compilers make vectors of them. */
INLINE void mean_of_block(const float *y_q, const float *q, const float *mu, const float *sigma, float *out)
{
    double product[BLOCK], falls[BLOCK], shift[BLOCK]; /* ch, exp(-2ch), and the mirrored mean - y_q */
    int narrow = 0;
    for (int i = 0; i < BLOCK; i++) {
        const double scale = 1.0 / (double)sigma[i];
        const double away = ((double)y_q[i] - (double)mu[i]) * scale;
        const double c = away < 0.0 ? -away : away, h = 0.5 * (double)q[i] * scale;
        const double a = c - h, b = c + h, near = a < 0.0 ? -a : a;
        const double inverse = 1.0 / ((near + 4.0) * (b + 4.0));
        const double e_near = excess(near, (b + 4.0) * inverse), e_b = excess(b, (near + 4.0) * inverse);
        const double r_near = near + e_near, r_b = b + e_b;
        const double fall = exp_minus(2.0 * c * h), phi = SQRT_1_OVER_2PI * exp_minus(0.5 * a * a);
        /* r(a) = above / below; m or m - a = top / bottom */
        const double above = a > 0.0 ? r_near : phi * r_near, below = a > 0.0 ? 1.0 : r_near - phi;
        const double tail = r_b * e_near - fall * r_near * (e_b + 2.0 * h), centre = (1.0 - fall) * above * r_b;
        const double top = a > 0.0 ? tail : centre, bottom = r_b * below - fall * above;
        shift[i] = (double)sigma[i] * (top / bottom - (a > 0.0 ? h : c));
        product[i] = c * h;
        falls[i] = fall;
    }
    for (int i = 0; i < BLOCK; i++)
        narrow |= 0.5 * (double)q[i] < NARROW * (double)sigma[i];
    if (narrow)
        for (int i = 0; i < BLOCK; i++) {
            const double other = -0.5 * (double)q[i] * langevin(product[i], falls[i]);
            shift[i] = 0.5 * (double)q[i] < NARROW * (double)sigma[i] ? other : shift[i];
        }
    for (int i = 0; i < BLOCK; i++) { /* only rounding errors leave the half of the cell that is nearer to mu */
        const double low = -0.5 * (double)q[i], above = shift[i] > low ? shift[i] : low;
        const double kept = above < 0.0 ? above : 0.0;
        out[i] = (float)((double)y_q[i] + (y_q[i] < mu[i] ? -kept : kept));
    }
}

typedef void block_function(const float *, const float *, const float *, const float *, float *);

static void mean_of_block_anywhere(const float *y_q, const float *q, const float *mu, const float *sigma, float *out)
{
    mean_of_block(y_q, q, mu, sigma, out);
}

#if defined(__GNUC__) && defined(__x86_64__) && !defined(_WIN32) /* where gcc does not align the stack as AVX needs */
#define WITH_AVX2
__attribute__((target("avx2,fma"))) static void mean_of_block_avx2(const float *y_q, const float *q, const float *mu,
                                                                   const float *sigma, float *out)
{
    mean_of_block(y_q, q, mu, sigma, out);
}
#endif

static block_function *mean_on_this_processor(void)
{
#ifdef WITH_AVX2
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return mean_of_block_avx2;
#endif
    return mean_of_block_anywhere;
}

/* Posterior means of `count` latents given their cells; `q` has one element or `count` of them (`q_count`). The bits of
 * an element do not depend on its place: the last block is filled up and done as all others. */
EXPORTED void gic_truncated_normal_mean(const float *y_q, const float *q, size_t q_count, const float *mu,
                                        const float *sigma, size_t count, float *out)
{
    block_function *const mean = mean_on_this_processor();
    float one_q[BLOCK], last[5][BLOCK];
    for (size_t i = 0; i < BLOCK; i++)
        one_q[i] = q[0];
    for (size_t start = 0; start < count; start += BLOCK) {
        const size_t rest = count - start;
        const float *const width = q_count == 1 ? one_q : q + start;
        if (rest >= BLOCK) {
            mean(y_q + start, width, mu + start, sigma + start, out + start);
            continue;
        }
        for (size_t i = 0; i < BLOCK; i++) {
            const size_t j = i < rest ? i : 0;
            last[0][i] = y_q[start + j];
            last[1][i] = width[j];
            last[2][i] = mu[start + j];
            last[3][i] = sigma[start + j];
        }
        mean(last[0], last[1], last[2], last[3], last[4]);
        memcpy(out + start, last[4], rest * sizeof *out);
    }
}
