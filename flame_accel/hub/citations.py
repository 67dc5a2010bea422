"""The paper of each architecture, and its BibTeX entry for a model card.

Titles and identifiers are those of fla's list of models and of its sources; authors are those of
fla's own entries, and of the entries in the repositories of the papers. Where these name no
authors, the entry has none; where they name no paper, the architecture has no entry.
"""

from typing import NamedTuple

from flame_accel.models.norms import NORM_NAMES

FLA = """@software{yang2024fla,
  title  = {FLA: A Triton-Based Library for Hardware-Efficient Implementations of Linear Attention \
Mechanism},
  author = {Yang, Songlin and Zhang, Yu},
  url    = {https://github.com/fla-org/flash-linear-attention},
  month  = jan,
  year   = {2024}
}"""


class Paper(NamedTuple):
    """A paper or, where there is none, a page."""

    title: str
    arxiv: str | None = None
    """Identifier on arXiv, YYMM.NNNNN; None if it is not known."""
    authors: str | None = None
    """As BibTeX has them."""
    url: str | None = None
    """If it is not on arXiv."""
    year: int | None = None
    """If it is not on arXiv."""


_YANG = "Yang, Songlin and "
_DELTA_PRODUCT = Paper(
    "DeltaProduct: Improving State-Tracking in Linear RNNs via Householder Products", "2502.10297"
)
_GATED_DELTANET = Paper(
    "Gated Delta Networks: Improving Mamba2 with Delta Rule",
    "2412.06464",
    f"{_YANG}Kautz, Jan and Hatamizadeh, Ali",
)
_KIMI_LINEAR = Paper(
    "Kimi Linear: An Expressive, Efficient Attention Architecture",
    "2510.26692",
    "Zhang, Yu and Lin, Zongyu and Yao, Xingcheng and Hu, Jiaxi and others",
)
_MAMBA2 = Paper(
    "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State "
    "Space Duality",
    "2405.21060",
    "Dao, Tri and Gu, Albert",
)
_PRECONDITIONED = Paper(
    "Preconditioned DeltaNet: Curvature-aware Sequence Modeling for Linear Recurrences",
    "2604.21100",
)

PAPERS: dict[str, Paper] = {
    "abc": Paper("ABC: Attention with Bounded-memory Control", "2110.02488"),
    "bitnet": Paper(
        "The Era of 1-bit LLMs: All Large Language Models are in 1.58 Bits", "2402.17764"
    ),
    "cat": Paper("Controllably Efficient Language Models", "2511.05313"),
    "comba": Paper("Comba: Improving Bilinear RNNs with Closed-loop Control", "2506.02475"),
    "cyclic_flow_attention": Paper(
        "CyFA: Linear Sequence Modeling with Relative-Time-Partitioned Memory", "2609.36259"
    ),
    "delta_net": Paper(
        "Parallelizing Linear Transformers with the Delta Rule over Sequence Length",
        "2406.06484",
        f"{_YANG}Wang, Bailin and Zhang, Yu and Shen, Yikang and Kim, Yoon",
    ),
    "deltaformer": Paper(
        "Understanding Transformer from the Perspective of Associative Memory", "2505.19488"
    ),
    "forgetting_transformer": Paper(
        "Forgetting Transformer: Softmax Attention with a Forget Gate",
        "2503.02130",
        "Lin, Zhixuan and Nikishin, Evgenii and He, Xu and Courville, Aaron",
    ),
    "gated_deltanet": _GATED_DELTANET,
    "gated_deltaproduct": _DELTA_PRODUCT,
    "gla": Paper(
        "Gated Linear Attention Transformers with Hardware-Efficient Training",
        "2312.06635",
        f"{_YANG}Wang, Bailin and Shen, Yikang and Panda, Rameswar and Kim, Yoon",
    ),
    "gsa": Paper(
        "Gated Slot Attention for Efficient Linear-Time Sequence Modeling",
        "2409.07146",
        "Zhang, Yu and Yang, Songlin and Zhu, Ruijie and Zhang, Yue and Cui, Leyang and "
        "Wang, Yiqiao and Wang, Bolun and Shi, Freda and Wang, Bailin and Bi, Wei and Zhou, Peng "
        "and Fu, Guohong",
    ),
    "hgrn": Paper(
        "Hierarchically Gated Recurrent Neural Network for Sequence Modeling", "2311.04823"
    ),
    "hgrn2": Paper(
        "HGRN2: Gated Linear RNNs with State Expansion",
        "2404.07904",
        "Qin, Zhen and Yang, Songlin and Sun, Weixuan and Shen, Xuyang and Li, Dong and "
        "Sun, Weigao and Zhong, Yiran",
    ),
    "kda": _KIMI_LINEAR,
    "lightnet": Paper(
        "You Only Scan Once: Efficient Multi-dimension Sequential Modeling with LightNet",
        "2405.21022",
    ),
    "linear_attn": Paper(
        "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention",
        "2006.16236",
        "Katharopoulos, Angelos and Vyas, Apoorv and Pappas, Nikolaos and Fleuret, Fran{\\c{c}}ois",
    ),
    "log_linear_mamba2": Paper(
        "Log-Linear Attention",
        "2506.04761",
        "Guo, Han and Yang, Songlin and Goel, Tarushii and Xing, Eric P. and Dao, Tri and "
        "Kim, Yoon",
    ),
    "mamba": Paper(
        "Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
        "2312.00752",
        "Gu, Albert and Dao, Tri",
    ),
    "mamba2": _MAMBA2,
    "mamba3": Paper(
        "Mamba-3: Improved Sequence Modeling using State Space Principles", "2603.15569"
    ),
    "mesa_net": Paper(
        "MesaNet: Sequence Modeling by Locally Optimal Test-Time Training", "2506.05233"
    ),
    "mla": Paper(
        "DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model",
        "2405.04434",
    ),
    "moba": Paper("MoBA: Mixture of Block Attention for Long-Context LLMs", "2502.13189"),
    "mom": Paper("MoM: Linear Sequence Modeling with Mixture-of-Memories", "2502.13685"),
    "nsa": Paper(
        "Native Sparse Attention: Hardware-Aligned and Natively Trainable Sparse Attention",
        "2502.11089",
        "Yuan, Jingyang and Gao, Huazuo and Dai, Damai and Luo, Junyu and Zhao, Liang and "
        "Zhang, Zhengyan and Xie, Zhenda and Wei, Y. X. and Wang, Lean and Xiao, Zhiping and "
        "Wang, Yuqing and Ruan, Chong and Zhang, Ming and Liang, Wenfeng and Zeng, Wangding",
    ),
    "parallax": Paper(
        "Parallax: Parameterized Local Linear Attention for Language Modeling", "2605.29157"
    ),
    "path_attn": Paper(
        "PaTH Attention: Position Encoding via Accumulating Householder Transformations",
        "2505.16381",
        f"{_YANG}Shen, Yikang and Wen, Kaiyue and Tan, Shawn and Mishra, Mayank and Ren, Liliang "
        "and Panda, Rameswar and Kim, Yoon",
    ),
    "precond_gated_deltanet": _PRECONDITIONED,
    "precond_kda": _PRECONDITIONED,
    "raven": Paper(
        "Raven: High-Recall Sequence Modeling with Sparse Memory Routing",
        url="https://github.com/goombalab/raven/blob/main/raven.pdf",
        year=2026,
    ),
    "retnet": Paper(
        "Retentive Network: A Successor to Transformer for Large Language Models",
        "2307.08621",
        "Sun, Yutao and Dong, Li and Huang, Shaohan and Ma, Shuming and Xia, Yuqing and "
        "Xue, Jilong and Wang, Jianyong and Wei, Furu",
    ),
    "rodimus": Paper(
        "Rodimus*: Breaking the Accuracy-Efficiency Trade-Off with Efficient Attentions",
        "2410.06577",
    ),
    "rwkv6": Paper(
        "Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence", "2404.05892"
    ),
    "rwkv7": Paper('RWKV-7 "Goose" with Expressive Dynamic State Evolution', "2503.14456"),
    "samba": Paper(
        "Samba: Simple Hybrid State Space Models for Efficient Unlimited Context Language Modeling",
        "2406.07522",
        "Ren, Liliang and Liu, Yang and Lu, Yadong and Shen, Yelong and Liang, Chen and "
        "Chen, Weizhu",
    ),
    "stickbreaking_attn": Paper(
        "Scaling Stick-Breaking Attention: An Efficient Implementation and In-depth Study",
        "2410.17980",
    ),
    "transformer": Paper("Attention Is All You Need", "1706.03762", "Vaswani, Ashish and others"),
    "wall_transformer": Paper(
        "Wall Attention: Length Generalization With Diagonal Gates",
        url="https://blog.tilderesearch.com/blog/wall-attn",
        year=2026,
    ),
    "yoco": Paper(
        "You Only Cache Once: Decoder-Decoder Architectures for Language Models", "2405.05254"
    ),
    # of transformers itself: the paper of their linear layers
    "kimi_linear": _KIMI_LINEAR,
    "qwen3_next": _GATED_DELTANET,
}
"""The paper of each model type of fla, and of hybrids in transformers with the same layers."""


def model_type_without_norm(model_type: str) -> str:
    """The model type as fla or transformers know it: gla, also of a gla_layernorm."""
    for kind in sorted(NORM_NAMES, key=len, reverse=True):
        model_type = model_type.removesuffix(f"_{kind}")
    return model_type


def find_paper(model_type: str) -> Paper | None:
    """The paper of a model type, with any kind of norm; None if none is known."""
    return PAPERS.get(model_type_without_norm(model_type))


def format_bibtex(key: str, paper: Paper) -> str:
    """The BibTeX entry of a paper.

    Args:
        key: Of the entry.
        paper: Only what is known of it becomes a field.
    """
    year, fields = paper.year, {"title": f"{{{paper.title}}}", "author": paper.authors}
    if paper.arxiv is not None:
        # of the first version: https://info.arxiv.org/help/arxiv_identifier.html
        year = 2000 + int(paper.arxiv[:2])
        fields |= {"eprint": paper.arxiv, "archivePrefix": "arXiv"}
    fields |= {"year": str(year), "url": paper.url or f"https://arxiv.org/abs/{paper.arxiv}"}
    lines = [f"  {name} = {{{value}}}" for name, value in fields.items() if value is not None]
    return f"@misc{{{key},\n" + ",\n".join(lines) + "\n}"
