/* Runs NET on two made-up inputs and compares with the integer twin: codes of every layer by their checksums, scores. Exit
 * status 0: all are equal. Needs no file and no argument, and so runs on any machine that can print. */
#include <stdio.h>

static void net_done(unsigned call, const void *memory);
#define NET_DONE(call) net_done(call, &memory);
#include "net.c"
@TAPS@
static const char *const net_tap_names[] = @NAMES@;
/* By input, then by tap. */
static const uint32_t net_sums[] = @SUMS@;
/* By input. */
static const int32_t net_expected[] = @SCORES@;
#define NET_TOLERANCE @TOLERANCE@ /* of scores: the twin's are rounded fp32 */

static unsigned net_input, net_wrong;

static void net_done(unsigned call, const void *memory)
{
    const net_memory *const m = (const net_memory *)memory;
    size_t i;
    for (i = 0; i < sizeof net_taps / sizeof *net_taps; i++) {
        const net_tap *const tap = &net_taps[i];
        uint32_t p, c, sum = 2166136261u;
        if (tap->call != call) {
            continue;
        }
        for (p = 0; p < tap->positions; p++) {
            for (c = 0; c < tap->channels; c++) {
                sum = (sum ^ net_get(net_row(m, &tap->at, p), c, tap->at.bits)) * 16777619u;
            }
        }
        if (sum != net_sums[net_input * (sizeof net_taps / sizeof *net_taps) + i]) {
            printf("input %u: other codes in %s\n", net_input, net_tap_names[i]);
            net_wrong++;
        }
    }
}

int main(void)
{
    static uint8_t input[NET_INPUT_SIZE];
    static int32_t scores[NET_SCORES];
    static uint32_t arena[NET_ARENA_SIZE / 4 + 1];
    uint32_t state = 1;
    size_t i;
    for (net_input = 0; net_input < 2; net_input++) {
        for (i = 0; i < sizeof input; i++) {
            state = state * 1664525u + 1013904223u;
            input[i] = (uint8_t)(@FROM@ + (int32_t)((state >> 16) % @RANGE@));
        }
        if (net_run(input, scores, arena, sizeof arena) != NET_OK) {
            net_wrong++;
        }
        for (i = 0; i < NET_SCORES; i++) {
            const int64_t apart = (int64_t)scores[i] - net_expected[net_input * NET_SCORES + i];
            if (apart > NET_TOLERANCE || apart < -NET_TOLERANCE) {
                printf("input %u: another score %u\n", net_input, (unsigned)i);
                net_wrong++;
            }
        }
    }
    printf("%s\n", net_wrong ? "failed" : "all equal");
    return net_wrong ? 1 : 0;
}
