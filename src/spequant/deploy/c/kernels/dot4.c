/* Products of weights of @BITS@ bits with four codes a word, in bytes of it; all of them fit 16 bits. */
static void net_dot4_w@BITS@(const uint8_t *weights, const uint32_t *x, uint32_t chunks, uint32_t run, uint32_t *sums)
{
    uint32_t even = 0, odd = 0;
    while (chunks != 0) {
        uint32_t sum = 0, n = chunks < run ? chunks : run;
        for (chunks -= n; n != 0; n--) {
            const @WORD@ w = @LOAD@;
@PRODUCTS@
            weights += @BYTES@;
            x += @COUNT@;
        }
        even += sum & 0x00FF00FFu;
        odd += (sum >> 8) & 0x00FF00FFu;
    }
    sums[0] = even & 0xFFFFu;
    sums[1] = odd & 0xFFFFu;
    sums[2] = even >> 16;
    sums[3] = odd >> 16;
}
