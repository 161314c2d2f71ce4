/* int32 numbers between two ends. */
typedef struct {
    net_tensor from, to;
    uint32_t positions, channels;
    int32_t low, high;
} net_clamp;

static void net_run_clamp(const net_clamp *p, const net_memory *m)
{
    uint32_t i, c;
    for (i = 0; i < p->positions; i++) {
        for (c = 0; c < p->channels; c++) {
            const int32_t value = net_load(m, &p->from, i, c);
            net_store(m, &p->to, i, c, value < p->low ? p->low : value > p->high ? p->high : value);
        }
    }
}
