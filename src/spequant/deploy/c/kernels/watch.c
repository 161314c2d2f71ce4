/* Codes of tensors, behind the calls that make them, as tests see them. */
typedef struct {
    uint16_t call;
    net_tensor at;
    uint32_t positions, channels;
} net_tap;

