"""What to write in place of an operation that has no integer form, by the name of its function or module."""

LEAVE_OUT = "leave it out of the network, whose largest output stays the largest, and apply it to what the export gives"
NORM = "expected batch norm, which is linear once trained"
ATTENTION = "a product of matrices that are both computed, as of attention"
RECURRENT = "expected convolutions over time, or linear layers"
ADVICE = {
    **dict.fromkeys(("softmax", "log_softmax", "softmax2d", "logsoftmax", "softmin", "normalize", "argmax"), LEAVE_OUT),
    **dict.fromkeys(("layer_norm", "layernorm", "layernorm2d", "group_norm", "groupnorm", "groupnorm1"), NORM),
    **dict.fromkeys(
        ("instance_norm", "instancenorm1d", "instancenorm2d", "instancenorm3d", "rms_norm", "rmsnorm"), NORM
    ),
    **dict.fromkeys(("local_response_norm", "localresponsenorm"), NORM),
    **dict.fromkeys(("matmul", "bmm", "baddbmm", "einsum", "scaled_dot_product_attention"), ATTENTION),
    **dict.fromkeys(("lstm", "gru", "rnn", "lstmcell", "grucell", "rnncell"), RECURRENT),
    **dict.fromkeys(
        ("conv1d", "conv2d", "conv3d", "linear", "conv_transpose2d"), "expected a module, whose weight has bits"
    ),
    "batch_norm": "expected a module, nn.BatchNorm2d or the like",
}


def instead(name: str) -> str:
    """What to say behind the name of an operation; "" if nothing."""
    advice = ADVICE.get(name.lower().strip("_"))
    return f" ({advice})" if advice else ""
