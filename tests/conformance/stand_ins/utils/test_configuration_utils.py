"""Stand-in: for every field of `PreTrainedConfig` a value that is not its default."""

config_common_kwargs = {
    "architectures": ["SomeModel"],
    "chunk_size_feed_forward": 5,
    "dtype": "float16",
    "id2label": {0: "cat"},
    "is_encoder_decoder": True,
    "label2id": {"cat": 0},
    "output_attentions": True,
    "output_hidden_states": True,
    "problem_type": "regression",
    "return_dict": False,
}
