/* A product of two tensors of codes, as in net_add. */
typedef struct {
    net_tensor a, b, to;
    uint32_t positions, channels;
    uint8_t a_position, a_channel, b_position, b_channel;
    int16_t a_low, b_low;
    const net_rounding *rounding;
} net_mul;

static void net_run_mul(const net_mul *p, const net_memory *m)
{
    uint32_t i, c;
    for (i = 0; i < p->positions; i++) {
        for (c = 0; c < p->channels; c++) {
            const int32_t a = net_load(m, &p->a, i * p->a_position, c * p->a_channel) + p->a_low;
            const int32_t b = net_load(m, &p->b, i * p->b_position, c * p->b_channel) + p->b_low;
            net_store(m, &p->to, i, c, net_rounded(p->rounding, 0, a * b));
        }
    }
}
