/* Products of weights of @BITS@ bits with two codes a word, in halves of it. */
static void net_dot2_w@BITS@(const uint8_t *weights, const uint32_t *x, uint32_t chunks, uint32_t run, uint32_t *sums)
{
    sums[0] = sums[1] = 0;
    while (chunks != 0) {
        uint32_t sum = 0, n = chunks < run ? chunks : run;
        for (chunks -= n; n != 0; n--) {
            const @WORD@ w = @LOAD@;
@PRODUCTS@
            weights += @BYTES@;
            x += @COUNT@;
        }
        sums[0] += sum & 0xFFFFu;
        sums[1] += sum >> 16;
    }
}
