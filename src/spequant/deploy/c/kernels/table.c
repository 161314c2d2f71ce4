/* Each stored code by a table; stride: entries from channel to channel, 0: one table for all. */
typedef struct {
    net_tensor from, to;
    uint32_t positions, channels;
    const uint8_t *table;
    uint16_t stride;
} net_table;

static void net_run_table(const net_table *p, const net_memory *m)
{
    uint32_t i, c;
    for (i = 0; i < p->positions; i++) {
        for (c = 0; c < p->channels; c++) {
            const uint32_t code = net_get(net_row(m, &p->from, i), c, p->from.bits);
            net_put(net_row(m, &p->to, i), c, p->to.bits, p->table[c * p->stride + code]);
        }
    }
}
