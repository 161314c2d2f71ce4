/* int32 numbers to codes. */
typedef struct {
    net_tensor from, to;
    uint32_t positions, channels;
    const net_rounding *rounding;
} net_round;

static void net_run_round(const net_round *p, const net_memory *m)
{
    uint32_t i, c;
    for (i = 0; i < p->positions; i++) {
        for (c = 0; c < p->channels; c++) {
            const int32_t value = net_load(m, &p->from, i, c);
            net_store(m, &p->to, i, c, net_rounded(p->rounding, 0, value));
        }
    }
}
