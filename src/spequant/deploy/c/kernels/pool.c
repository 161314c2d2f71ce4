/* The largest number, or the mean, of each window. Of a mean: rounding, of int32 none; low: code of what is stored as 0;
 * by_count: whether the positions inside alone count. moved: added to the largest stored code. */
typedef struct {
    net_tensor from, to;
    uint16_t size[3], out[3], kernel[3], stride[3], before[3];
    uint32_t channels;
    uint8_t mean, by_count;
    int16_t low, moved;
    const net_rounding *rounding;
} net_pool;

static int32_t net_pooled(const net_pool *p, const net_memory *m, const uint32_t *at, uint32_t channel)
{
    const int64_t all = (int64_t)p->kernel[0] * p->kernel[1] * p->kernel[2];
    int64_t sum = 0, count = 0;
    int32_t most = INT32_MIN;
    uint32_t k[3];
    for (k[0] = 0; k[0] < p->kernel[0]; k[0]++) {
        const uint32_t z = at[0] * p->stride[0] + k[0] - p->before[0];
        for (k[1] = 0; k[1] < p->kernel[1]; k[1]++) {
            const uint32_t y = at[1] * p->stride[1] + k[1] - p->before[1];
            for (k[2] = 0; k[2] < p->kernel[2]; k[2]++) {
                const uint32_t w = at[2] * p->stride[2] + k[2] - p->before[2];
                if (z < p->size[0] && y < p->size[1] && w < p->size[2]) {
                    const int32_t value = net_load(m, &p->from, (z * p->size[1] + y) * p->size[2] + w, channel);
                    most = value > most ? value : most;
                    sum += value;
                    count++;
                }
            }
        }
    }
    if (!p->mean) {
        return most + p->moved;
    }
    sum += count * p->low;
    if (p->rounding != NULL) {
        return net_rounded(p->rounding, p->by_count ? (uint32_t)count - 1u : 0u, (int32_t)sum);
    }
    count = p->by_count ? count : all;
    return (int32_t)(sum >= 0 ? (sum + count / 2) / count : -((count / 2 - sum) / count));
}

static void net_run_pool(const net_pool *p, const net_memory *m)
{
    uint32_t at[3], c, position = 0;
    for (at[0] = 0; at[0] < p->out[0]; at[0]++) {
        for (at[1] = 0; at[1] < p->out[1]; at[1]++) {
            for (at[2] = 0; at[2] < p->out[2]; at[2]++) {
                for (c = 0; c < p->channels; c++) {
                    net_store(m, &p->to, position, c, net_pooled(p, m, at, c));
                }
                position++;
            }
        }
    }
}
