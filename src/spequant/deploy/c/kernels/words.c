/* Numbers of any tensor, by position and channel. */
static int32_t *net_words(const net_memory *m, const net_tensor *t, uint32_t position)
{
    int32_t *const base = t->in_scores ? m->scores : (int32_t *)m->arena;
    return base + t->offset / 4u + position * (t->stride / 4u);
}

static int32_t net_load(const net_memory *m, const net_tensor *t, uint32_t position, uint32_t channel)
{
    if (t->bits == 32) {
        return net_words(m, t, position)[channel];
    }
    return (int32_t)net_get(net_row(m, t, position), channel, t->bits);
}

static void net_store(const net_memory *m, const net_tensor *t, uint32_t position, uint32_t channel, int32_t value)
{
    if (t->bits == 32) {
        net_words(m, t, position)[channel] = value;
    } else {
        net_put(net_row(m, t, position), channel, t->bits, (uint32_t)value);
    }
}
