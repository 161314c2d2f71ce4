/* As net_total2; codes are then as @NAME@ reads them. */
static void net_total2_@NAME@(uint32_t *x, uint32_t count, uint32_t *sums)
{
    net_total2(x, count, sums);
#if NET_PAIRS
    net_pair_up(x, count, @HALF@);
#endif
}

#if NET_PAIRS
/* Products of weights of @BITS@ bits with codes of two positions, in pairs. */
static void net_@NAME@(const uint8_t *weights, const uint32_t *x, uint32_t chunks, uint32_t run, uint32_t *sums)
{
    uint32_t first = 0, second = 0, i;
    (void)run;
    for (; chunks >= 4u; chunks -= 4u, weights += 4, x += @BLOCK@) {
        const uint32_t w = @LOAD@;
@PRODUCTS@
    }
    for (; chunks != 0; chunks--, weights++) {
        for (i = 0; i < 8u; i += @BITS@u, x++) {
            first += ((uint32_t)*weights >> i & @MASK@) * (*x & 0xFFFFu);
            second += ((uint32_t)*weights >> i & @MASK@) * (*x >> 16);
        }
    }
    sums[0] = first;
    sums[1] = second;
}
#else
@PLAIN@#endif
