/* Products of weights of @BITS@ bits with one code a word. */
static void net_dot1_w@BITS@(const uint8_t *weights, const uint32_t *x, uint32_t chunks, uint32_t run, uint32_t *sums)
{
    uint32_t sum = 0;
    (void)run;
    for (; chunks != 0; chunks--) {
        const @WORD@ w = @LOAD@;
@PRODUCTS@
        weights += @BYTES@;
        x += @COUNT@;
    }
    sums[0] = sum;
}
