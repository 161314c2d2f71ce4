/* A layer: sums of products, finished at once. A weight is low + step * what is stored, a stored code 0 or more, so that
 * a sum is step * (products of what is stored) + low * (sum of codes). Windows of `lanes` positions are gathered into
 * the words x, a code of each position in every word: one multiplication then makes the products of all of them. */
typedef void net_dot(const uint8_t *weights, const uint32_t *x, uint32_t chunks, uint32_t run, uint32_t *sums);

/* What is made of a sum. sum: of an addition behind the layer, with `other`; NULL: none. */
typedef struct {
    net_tensor to;
    net_tensor other;
    const net_rounding *rounding;
    const net_sum *sum;
} net_result;

typedef struct {
    net_tensor from;
    uint16_t size[3], out[3], kernel[3], stride[3], dilation[3], before[3];
    uint16_t groups, inputs, outputs; /* inputs, outputs: of a group */
    uint16_t chunks, chunk, row;      /* of an output's weights; weights in one; bytes of all */
    uint16_t run;                     /* chunks whose products a lane holds */
    uint8_t lanes, lane_bits;
    uint8_t zero; /* what is stored for code 0 */
    int16_t low, step;
    const int16_t *lows; /* by output; NULL: low */
    const uint8_t *weights;
    net_dot *dot;
    uint32_t scratch; /* bytes, where x is in the arena */
    const net_result *results;
    uint8_t count;
} net_conv;

/* `count` codes of a row from channel `first` on, into bits `shift` of x; gives their sum. */
static uint32_t net_unpack(const uint8_t *row, uint32_t first, uint32_t count, uint32_t bits, uint32_t shift, uint32_t *x)
{
    const uint32_t mask = ((uint32_t)1 << bits) - 1u, keep = shift == 0 ? 0u : 0xFFFFFFFFu;
    const uint32_t per = 8u / bits;
    uint32_t sum = 0, i = 0;
    while (i < count) {
        const uint32_t at = first + i;
        uint32_t inside = at % per;
        uint32_t byte = (uint32_t)row[at / per] >> (inside * bits);
        for (; inside < per && i < count; inside++, i++) {
            const uint32_t code = byte & mask;
            byte >>= bits;
            sum += code;
            x[i] = (x[i] & keep) | (code << shift);
        }
    }
    return sum;
}

/* The window of `position`, codes of one group. */
static uint32_t net_gather(const net_conv *p, const net_memory *m, uint32_t position, uint32_t group, uint32_t shift, uint32_t *x)
{
    const uint32_t keep = shift == 0 ? 0u : 0xFFFFFFFFu;
    const uint32_t at[3] = {position / p->out[2] / p->out[1], position / p->out[2] % p->out[1], position % p->out[2]};
    uint32_t *const end = x + (uint32_t)p->chunks * p->chunk;
    uint32_t k[3], sum = 0;
    for (k[0] = 0; k[0] < p->kernel[0]; k[0]++) {
        const uint32_t z = at[0] * p->stride[0] + k[0] * p->dilation[0] - p->before[0];
        for (k[1] = 0; k[1] < p->kernel[1]; k[1]++) {
            const uint32_t y = at[1] * p->stride[1] + k[1] * p->dilation[1] - p->before[1];
            for (k[2] = 0; k[2] < p->kernel[2]; k[2]++) {
                const uint32_t w = at[2] * p->stride[2] + k[2] * p->dilation[2] - p->before[2];
                if (z < p->size[0] && y < p->size[1] && w < p->size[2]) { /* left of 0 they wrap around */
                    const uint8_t *const row = net_row(m, &p->from, (z * p->size[1] + y) * p->size[2] + w);
                    sum += net_unpack(row, group * p->inputs, p->inputs, p->from.bits, shift, x);
                } else {
                    uint32_t i;
                    for (i = 0; i < p->inputs; i++) {
                        x[i] = (x[i] & keep) | ((uint32_t)p->zero << shift);
                    }
                    sum += (uint32_t)p->zero * p->inputs;
                }
                x += p->inputs;
            }
        }
    }
    for (; x < end; x++) {
        *x = 0;
    }
    return sum;
}

static void net_finish(const net_conv *p, const net_memory *m, uint32_t position, uint32_t channel, int32_t sum)
{
    uint32_t i;
    for (i = 0; i < p->count; i++) {
        const net_result *const r = &p->results[i];
        int32_t value = net_rounded(r->rounding, channel, sum);
        if (r->sum != NULL) {
            value = net_summed(r->sum, value, net_load(m, &r->other, position, channel));
        }
        net_store(m, &r->to, position, channel, value);
    }
}

static void net_run_conv(const net_conv *p, const net_memory *m)
{
    const uint32_t positions = (uint32_t)p->out[0] * p->out[1] * p->out[2];
    uint32_t *const x = m->arena + p->scratch / 4u;
    uint32_t position, group, i, lane;
    for (position = 0; position < positions; position += p->lanes) {
        const uint32_t here = positions - position < p->lanes ? positions - position : p->lanes;
        for (group = 0; group < p->groups; group++) {
            uint32_t totals[4], sums[4];
            for (lane = 0; lane < here; lane++) {
                totals[lane] = net_gather(p, m, position + lane, group, lane * p->lane_bits, x);
            }
            for (i = 0; i < p->outputs; i++) {
                const uint32_t channel = group * p->outputs + i;
                const int32_t low = p->lows != NULL ? p->lows[channel] : p->low;
                p->dot(p->weights + channel * p->row, x, p->chunks, p->run, sums);
                for (lane = 0; lane < here; lane++) {
                    const int32_t sum = p->step * (int32_t)sums[lane] + low * (int32_t)totals[lane];
                    net_finish(p, m, position + lane, channel, sum);
                }
            }
        }
    }
}
