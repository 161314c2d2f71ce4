/* value / 2^shift, downwards. */
static int64_t net_floor(int64_t value, uint32_t shift)
{
    return value >= 0 ? (int64_t)((uint64_t)value >> shift) : -1 - (int64_t)((uint64_t)(-1 - value) >> shift);
}
