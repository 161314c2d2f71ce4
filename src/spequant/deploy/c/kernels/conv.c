/* A layer: sums of products, finished at once. A weight is low + step * what is stored, a stored code 0 or more, so that
 * a sum is step * (products of what is stored) + low * (sum of codes). Windows of `lanes` positions are gathered into
 * the words x, a code of each position in every word: one multiplication then makes the products of all of them. */
typedef struct net_conv net_conv;
typedef void net_gather(const net_conv *p, const net_memory *m, uint32_t position, uint32_t group, uint32_t *x);
typedef void net_total(uint32_t *x, uint32_t count, uint32_t *sums);
typedef void net_dot(const uint8_t *weights, const uint32_t *x, uint32_t chunks, uint32_t run, uint32_t *sums);

/* What is made of a sum. sum: of an addition behind the layer, with `other`; NULL: none. */
typedef struct {
    net_tensor to;
    net_tensor other;
    const net_rounding *rounding;
    const net_sum *sum;
} net_result;

struct net_conv {
    net_tensor from;
    uint16_t size[3], out[3], kernel[3], stride[3], dilation[3], before[3];
    uint16_t groups, inputs, outputs; /* inputs, outputs: of a group */
    uint16_t block;                   /* groups that are gathered together; of several each has one input */
    uint16_t chunks, chunk, row;      /* of an output's weights; weights in one; bytes of all */
    uint16_t run;                     /* chunks whose products a lane holds */
    uint8_t lanes;
    uint8_t zeros; /* a byte of codes that stand for 0 */
    int16_t low, step;
    const int16_t *lows; /* by output; NULL: low */
    const uint8_t *weights;
    net_gather *gather;
    net_total *total;
    net_dot *dot;
    uint32_t scratch; /* bytes, where x is in the arena */
    const net_result *results;
    uint8_t count;
};

static uint32_t net_positions(const net_conv *p)
{
    return (uint32_t)p->out[0] * p->out[1] * p->out[2];
}

/* The codes of the input under tap k of the window of a position; NULL: it lies outside. */
static const uint8_t *net_under(const net_conv *p, const net_memory *m, uint32_t position, const uint32_t *k)
{
    const uint32_t line = position / p->out[2];
    const uint32_t z = line / p->out[1] * p->stride[0] + k[0] * p->dilation[0] - p->before[0];
    const uint32_t y = line % p->out[1] * p->stride[1] + k[1] * p->dilation[1] - p->before[1];
    const uint32_t w = position % p->out[2] * p->stride[2] + k[2] * p->dilation[2] - p->before[2];
    if (position >= net_positions(p) || z >= p->size[0] || y >= p->size[1] || w >= p->size[2]) {
        return NULL; /* left of 0 they wrap around */
    }
    return net_row(m, &p->from, (z * p->size[1] + y) * p->size[2] + w);
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

/* All outputs of a group, of which x is the window. */
static void net_multiply(const net_conv *p, const net_memory *m, uint32_t position, uint32_t group, uint32_t *x)
{
    const uint32_t left = net_positions(p) - position, here = left < p->lanes ? left : p->lanes;
    uint32_t totals[4], sums[4], channel, lane;
    p->total(x, (uint32_t)p->chunks * p->chunk, totals);
    for (channel = group * p->outputs; channel < (group + 1u) * p->outputs; channel++) {
        const int32_t low = p->lows != NULL ? p->lows[channel] : p->low;
        p->dot(p->weights + channel * p->row, x, p->chunks, p->run, sums);
        for (lane = 0; lane < here; lane++) {
            const int32_t sum = p->step * (int32_t)sums[lane] + low * (int32_t)totals[lane];
            net_finish(p, m, position + lane, channel, sum);
        }
    }
}

static void net_run_conv(const net_conv *p, const net_memory *m)
{
    uint32_t *const x = m->arena + p->scratch / 4u;
    uint32_t position, group, i;
    for (position = 0; position < net_positions(p); position += p->lanes) {
        for (group = 0; group < p->groups; group += p->block) {
            p->gather(p, m, position, group, x);
            for (i = 0; i < p->block && group + i < p->groups; i++) {
                net_multiply(p, m, position, group + i, x + i * p->chunks * p->chunk);
            }
        }
    }
}
