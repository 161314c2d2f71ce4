/* Numbers put elsewhere. They are counted channel by channel, at each channel its positions; digit d of the count goes
 * from 0 to counts[d] - 1, the last fastest, and moves by its step. moved: added to each. */
typedef struct {
    net_tensor from, to;
    uint32_t from_positions, to_positions, from_first, to_first;
    uint32_t counts[@DIGITS@];
    int32_t from_steps[@DIGITS@], to_steps[@DIGITS@];
    int16_t moved;
} net_move;

static void net_run_move(const net_move *p, const net_memory *m)
{
    uint32_t digits[@DIGITS@] = {0}, from = p->from_first, to = p->to_first, d;
    do {
        const int32_t value = net_load(m, &p->from, from % p->from_positions, from / p->from_positions);
        net_store(m, &p->to, to % p->to_positions, to / p->to_positions, value + p->moved);
        for (d = @DIGITS@; d != 0; d--) { /* the next count; steps below 0 wrap around */
            from += (uint32_t)p->from_steps[d - 1u];
            to += (uint32_t)p->to_steps[d - 1u];
            if (++digits[d - 1u] < p->counts[d - 1u]) {
                break;
            }
            from -= (uint32_t)p->from_steps[d - 1u] * p->counts[d - 1u];
            to -= (uint32_t)p->to_steps[d - 1u] * p->counts[d - 1u];
            digits[d - 1u] = 0;
        }
    } while (d != 0);
}
