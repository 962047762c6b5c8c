"""Torch's functions by what they do to a token: move it, leave it, or only ask about its tensor."""


def words(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


# Move elements without changing them: torch does to ids what it does to values.
REARRANGE = words("""
    view reshape permute transpose t swapaxes swapdims movedim moveaxis flatten unflatten squeeze unsqueeze expand
    expand_as repeat repeat_interleave tile chunk split split_with_sizes tensor_split unbind narrow select getitem
    index_select gather take_along_dim roll flip fliplr flipud rot90 contiguous clone detach unfold view_as reshape_as
    pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle stack hstack vstack as_strided adjoint ravel
    broadcast_to requires_grad diagonal tril triu
""")

# Change each element, or each by its channel: the token stays.
SAME = words("""
    relu relu6 gelu silu sigmoid tanh elu selu celu leaky_relu prelu mish softplus softsign hardswish hardsigmoid
    hardtanh hardshrink threshold exp log log1p expm1 sqrt rsqrt square abs neg negative reciprocal pow clamp clamp_min
    clamp_max clip erf sin cos nan_to_num log_softmax logsigmoid dropout dropout1d dropout2d dropout3d alpha_dropout
    feature_dropout feature_alpha_dropout native_dropout layer_norm group_norm batch_norm instance_norm rms_norm
    normalize local_response_norm to type type_as float half double bfloat16 round floor ceil sign cpu cuda positive
    logit bernoulli
""")

# Ask about a tensor, or make another of its shape: what comes out is not of the picture.
ABOUT = words("""
    zeros_like ones_like empty_like full_like new_zeros new_ones new_empty new_full new_tensor
    size dim numel nelement is_floating_point is_complex stride len repr str is_contiguous element_size
    storage_offset ndimension data_ptr untyped_storage get_device is_pinned format hash isnan isinf
    isfinite is_same_size has_names result_type is_tensor
""")

# Ask for the values: the model goes on by what it sees, and a trace sees no values.
DECIDES = words("""
    __bool__ __int__ __float__ __index__ __complex__ __contains__ __array__ item tolist numpy equal allclose is_nonzero
    nonzero argwhere masked_select unique unique_consecutive
""")

# Draw numbers: another pass draws others.
CHANCE = words("""
    rand randn randint randperm rand_like randn_like randint_like normal uniform_ normal_ random_ exponential_ bernoulli
    bernoulli_ multinomial poisson log_normal_ cauchy_ geometric_
""")

# Those of `REARRANGE` that give another look at the same memory.
VIEWS = words("""
    view permute transpose t swapaxes swapdims movedim moveaxis flatten unflatten squeeze unsqueeze chunk split
    split_with_sizes tensor_split unbind narrow select getitem reshape detach view_as reshape_as adjoint ravel diagonal
""")

# Join two tensors element by element.
BINARY = words("""
    sub subtract mul multiply div divide true_divide floor_divide truediv floordiv rsub maximum minimum fmod remainder
    mod lerp addcmul addcdiv atan2
""")

# Merge what lies along some dimensions.
REDUCE = words("mean sum amax amin std var norm logsumexp prod vector_norm linalg_vector_norm nanmean")
