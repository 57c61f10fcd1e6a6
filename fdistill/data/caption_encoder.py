"""A word-level CLIP tokenizer and a small CLIP text model for a closed set of captions, made offline from a seed."""

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

WIDTH, LAYERS, HEADS = 64, 2, 4
_BEGIN, _END = "<|startoftext|>", "<|endoftext|>"


def caption_tokenizer(captions: Sequence[str]) -> Any:
    """A `CLIPTokenizer` of one token a word, for captions of these words; as long as the longest of them.

    Its merges are those of byte-pair encoding of the words themselves; the same captions give the same tokens.

    Raises:
        ImportError: without transformers.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    words = sorted({word for caption in captions for word in caption.split()})
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
    longest = max(len(caption.split()) for caption in captions) + 2  # begin and end
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=longest)


def caption_text_model(tokenizer: Any, seed: int = 0) -> Any:
    """A `CLIPTextModel` of 64 channels and two layers with random weights of a seed, in evaluation mode.

    Raises:
        ImportError: without transformers.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPTextModel(config).eval()


@torch.no_grad()
def encoded_captions(captions: Sequence[str], tokenizer: Any, model: Any) -> Tensor:
    """The embeddings of all tokens, float32 [n, length, 64], padded as a stock pipeline pads them."""
    length = tokenizer.model_max_length
    ids = tokenizer(list(captions), padding="max_length", max_length=length, truncation=True).input_ids
    return model(torch.tensor(ids)).last_hidden_state
