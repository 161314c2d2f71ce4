/* A sum of two tensors, one of which may have one position or one channel alone: its steps are then 0. */
typedef struct {
    net_tensor a, b, to;
    uint32_t positions, channels;
    uint8_t a_position, a_channel, b_position, b_channel;
    const net_sum *sum;
} net_add;

static void net_run_add(const net_add *p, const net_memory *m)
{
    uint32_t i, c;
    for (i = 0; i < p->positions; i++) {
        for (c = 0; c < p->channels; c++) {
            const int32_t a = net_load(m, &p->a, i * p->a_position, c * p->a_channel);
            const int32_t b = net_load(m, &p->b, i * p->b_position, c * p->b_channel);
            net_store(m, &p->to, i, c, net_summed(p->sum, a, b));
        }
    }
}
