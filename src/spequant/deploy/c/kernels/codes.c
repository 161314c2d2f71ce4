/* The input, int8 codes, of which `first` is stored as 0 and others than those of the grid as the nearest of it. */
typedef struct {
    net_tensor to;
    uint32_t positions, channels;
    int16_t first;
    uint8_t top;
} net_codes;

static void net_run_codes(const net_codes *p, const net_memory *m)
{
    uint32_t i, c;
    for (i = 0; i < p->positions; i++) {
        for (c = 0; c < p->channels; c++) {
            const int32_t byte = m->input[i * p->channels + c];
            int32_t code = (byte < 128 ? byte : byte - 256) - p->first;
            code = code < 0 ? 0 : code > p->top ? p->top : code;
            net_put(net_row(m, &p->to, i), c, p->to.bits, (uint32_t)code);
        }
    }
}
