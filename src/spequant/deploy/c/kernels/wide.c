/* Products of weights of 8 bits with two codes a word, in halves of it; each sum in a word of its own. */
static void net_wide2_w8(const uint8_t *weights, const uint32_t *x, uint32_t chunks, uint32_t run, uint32_t *sums)
{
    uint32_t first = 0, second = 0;
    (void)run;
    for (; chunks != 0; chunks--, weights++, x++) {
        first += *weights * (*x & 0xFFFFu);
        second += *weights * (*x >> 16);
    }
    sums[0] = first;
    sums[1] = second;
}
