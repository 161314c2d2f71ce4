/* The input, uint8 pixels, by a table of 256 codes; stride: as in net_table. */
typedef struct {
    net_tensor to;
    uint32_t positions, channels;
    const uint8_t *table;
    uint16_t stride;
} net_pixels;

static void net_run_pixels(const net_pixels *p, const net_memory *m)
{
    uint32_t i, c;
    for (i = 0; i < p->positions; i++) {
        for (c = 0; c < p->channels; c++) {
            const uint32_t pixel = m->input[i * p->channels + c];
            net_put(net_row(m, &p->to, i), c, p->to.bits, p->table[c * p->stride + pixel]);
        }
    }
}
