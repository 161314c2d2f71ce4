/* Cores that make two products of halves of words at once, and add both (SMLAD). */
#if defined(__ARM_FEATURE_DSP) && defined(__ARM_FEATURE_SIMD32)
#include <arm_acle.h>
#define NET_PAIRS 1

static uint32_t net_pair(uint32_t x, uint32_t w, uint32_t sum)
{
    return (uint32_t)__smlad((int16x2_t)x, (int16x2_t)w, (int32_t)sum);
}

/* Of words with a code of two positions each: in every 2 * half of them, codes that are `half` apart come into one word,
 * those of the first position into the first half of the words, those of the second into the second. */
static void net_pair_up(uint32_t *x, uint32_t count, uint32_t half)
{
    uint32_t i;
    for (; count >= 2u * half; count -= 2u * half, x += 2u * half) {
        for (i = 0; i < half; i++) {
            const uint32_t a = x[i], b = x[i + half];
            x[i] = (a & 0xFFFFu) | (b << 16);
            x[i + half] = (a >> 16) | (b & 0xFFFF0000u);
        }
    }
}
#else
#define NET_PAIRS 0
#endif
