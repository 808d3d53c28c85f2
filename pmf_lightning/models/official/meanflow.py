"""What the files of pMF and iMF share: the names of the backbone of vit.py."""

RULES = (
    (r"conditions\.label\.tokens\.weight", "class_tokens"),
    (r"conditions\.label\.table\.", "y_embedder.embedding_table._flax_embedding."),
    (r"conditions\.h\.tokens\.weight", "time_tokens"),
    (r"conditions\.(\w+)\.tokens\.weight", r"\1_tokens"),
    (r"conditions\.t_min\.", "cfg_t_start_embedder."),
    (r"conditions\.t_max\.", "cfg_t_end_embedder."),
    (r"conditions\.(\w+)\.", r"\1_embedder."),
    (r"mlp_in\.", "mlp.0._flax_linear."),
    (r"mlp_out\.", "mlp.2._flax_linear."),
    (r"heads\.(\w)\.blocks\.", r"\1_heads."),
    (r"heads\.(\w)\.norm\.", r"\1_final_layer.norm."),
    (r"heads\.(\w)\.out\.", r"\1_final_layer.linear._flax_linear."),
    (r"trunk\.", "shared_blocks."),
    (r"attention_norm\.", "norm1."),
    (r"mlp_norm\.", "norm2."),
    (r"attention_gate\.weight", "attn_scale"),
    (r"mlp_gate\.weight", "mlp_scale"),
    (r"attention\.(q|k)_norm\.", r"attn.\1_norm."),
    (r"attention\.(q|k|v|out)\.", r"attn.\1_proj._flax_linear."),
    (r"\.mlp\.(w\d)\.", r".mlp.\1._flax_linear."),
)
NORM = "u_final_layer.norm.weight"
TABLE = "y_embedder.embedding_table._flax_embedding.weight"
STACKS = tuple(rf"{stack}\.(\d+)\.attn\.q_proj\._flax_linear\.weight" for stack in ("shared_blocks", "u_heads"))
