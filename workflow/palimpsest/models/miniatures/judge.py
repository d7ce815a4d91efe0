"""A judge that costs nothing: a random Llama of which nearly every token is a number from 0 to 10.

Its scores mean nothing. With `max_tokens: 1` a reply is one number, or "?", as of a judge that
talks nonsense now and then.
"""

from __future__ import annotations

import string
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, BOS, EOS, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
NUMBERS = [str(number) for number in range(11)]
SAID = [*NUMBERS, "?"]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def generate(out: Path, seed: int = 0) -> None:
    """Write a model of some 40,000 weights, drawn from a seed, with its tokenizer, as the hub has.

    Every character is a token, and so is 10.
    """
    tokenizer = _tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        initializer_range=0.5,  # so that the last token's state depends on those before it
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        # What is never said has a logit of 0, above which one of the others nearly always is.
        mute = torch.ones(len(tokenizer), dtype=torch.bool)
        mute[tokenizer.convert_tokens_to_ids(SAID)] = False
        model.lm_head.weight[mute] = 0.0
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _tokenizer() -> PreTrainedTokenizerFast:
    pieces = [PAD, BOS, EOS, UNKNOWN, *dict.fromkeys([*string.printable, *SAID])]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"10|[\s\S]"), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="left",
        chat_template=TEMPLATE,
    )
