/* Runs images from stdin: of each its bytes, and with the argument "forced" the codes of every tap. Gives for each, least
 * byte first, the codes of every tap where there is an argument, and the scores. */
#include <stdio.h>

static void net_done(unsigned call, const void *memory);
#define NET_DONE(call) net_done(call, &memory);
#include "net.c"
@TAPS@
static int net_shown, net_forced;

static void net_done(unsigned call, const void *memory)
{
    const net_memory *const m = (const net_memory *)memory;
    size_t i;
    for (i = 0; net_shown && i < sizeof net_taps / sizeof *net_taps; i++) {
        const net_tap *const tap = &net_taps[i];
        uint32_t p, c;
        for (p = 0; tap->call == call && p < tap->positions; p++) {
            for (c = 0; c < tap->channels; c++) {
                putchar((int)net_get(net_row(m, &tap->at, p), c, tap->at.bits));
            }
        }
        for (p = 0; net_forced && tap->call == call && p < tap->positions; p++) {
            for (c = 0; c < tap->channels; c++) {
                net_put(net_row(m, &tap->at, p), c, tap->at.bits, (uint32_t)getchar());
            }
        }
    }
}

int main(int count, char **arguments)
{
    static uint8_t input[NET_INPUT_SIZE];
    static int32_t scores[NET_SCORES];
    static uint32_t arena[NET_ARENA_SIZE / 4 + 1];
    size_t i;
    net_shown = count > 1;
    net_forced = count > 1 && arguments[1][0] == 'f';
    while (fread(input, 1, sizeof input, stdin) == sizeof input) {
        if (net_run(input, scores, arena, sizeof arena) != NET_OK) {
            return 1;
        }
        for (i = 0; i < NET_SCORES; i++) {
            const uint32_t score = (uint32_t)scores[i];
            putchar((int)(score & 255u));
            putchar((int)(score >> 8 & 255u));
            putchar((int)(score >> 16 & 255u));
            putchar((int)(score >> 24));
        }
    }
    return 0;
}
