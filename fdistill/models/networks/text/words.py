"""A word-level CLIP tokenizer and a small CLIP text model for a closed set of words, made offline."""

import json
from collections.abc import Sequence
from typing import Any

_BEGIN, _END = "<|startoftext|>", "<|endoftext|>"


def word_tokenizer(words: Sequence[str], length: int) -> Any:
    """A `CLIPTokenizer` of one token a word, for texts of these words.

    Its merges are those of byte-pair encoding of the words themselves; the same words give the same tokens.

    Args:
        words: in any order.
        length: of the longest text in tokens, with those of its begin and end.

    Raises:
        ImportError: without transformers.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    words = sorted(set(words))
    letters = sorted({letter for word in words for letter in word})
    vocabulary = {piece: number for number, piece in enumerate([*letters, *(f"{letter}</w>" for letter in letters)])}
    model = models.BPE(vocab=dict(vocabulary), merges=[], end_of_word_suffix="</w>", continuing_subword_prefix="")
    learner = Tokenizer(model)
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=10_000, min_frequency=1, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator(words, trainer)
    pairs = json.loads(learner.to_str())["model"]["merges"]
    merges: list[Any] = [tuple(pair) if isinstance(pair, list) else tuple(pair.split()) for pair in pairs]
    for first, second in merges:
        for piece in (first, second, first + second):
            vocabulary.setdefault(piece, len(vocabulary))
    for special in (_BEGIN, _END):
        vocabulary[special] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)


def token_ids(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Of each text, padded as a stock pipeline pads them."""
    length = tokenizer.model_max_length
    return tokenizer(list(texts), padding="max_length", max_length=length, truncation=True).input_ids


def small_text_model(tokenizer: Any, width: int, layers: int, heads: int) -> Any:
    """A `CLIPTextModel` with random weights.

    Raises:
        ImportError: without transformers.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)
