r"""Captions in words, as the official evaluation of COCO captions takes them apart.

That one runs Stanford's PTBTokenizer 3.4.1 with `-preserveLines -lowerCase`, and then drops a list
of punctuation marks (pycocoevalcap, `PTBTokenizer`). What it does was found by giving it texts:

    words          kept with hyphens, strokes and single dots inside (`t-shirt`, `and/or`, `x.com`)
    clitics        split off: `do n't`, `can not`, `gon na`, `dog 's`, `i 'm`; `o'clock` is one word
    full stops     kept after abbreviations (`mr.`, `p.m.`, `no. 5`) and between a word and a comma
    numbers        `1,000`, `3.5`, `10:30`, `1/2`, `-5` are one word; `$ 5`, `50 %`, `# 1` are two
    signs          others are words of their own, and those of the list are dropped

The official list names brackets in upper case, which the tokenizer no longer writes: so `(` stays,
as `-lrb-`. A mark that is repeated (`!!`, `?!`) is not on the list and stays too.

Of the 25,014 captions of COCO's val2017 one came out otherwise (`Ho'ohu`), of the 40,460 of
Flickr8k none; all words of two and three letters were tried as abbreviations. Two things differ: a
text of programs or addresses may come out otherwise, and the official tool reads on over the end of
a caption, so that an initial there (`reads K.`) keeps its full stop if the next caption does not
begin as most do. Here it loses it.
"""

from __future__ import annotations

import re

# Abbreviations that keep their full stop wherever they stand ...
ALWAYS = """
    jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri mr mrs ms messrs
    dr drs prof profs sr jr st ste ave blvd rd ct sq dept univ assn assoc bros co cos corp inc ltd
    plc mfg gov sen sens rep reps gen col lt maj capt cmdr cpl sgt pvt adm pres hon rev supt supts
    atty attys asst est etc vs al cf bldg tel ext ft mt ala ariz calif colo conn fla ga ind kan kans
    ky md mich minn mo mont neb nev okla penn tenn va vt wis wyo intl natl elec ph.d esq msgr treas
    seq wm jos alex adj adv bhd cie dak det ens mme mtg pfc ph pte pty rt sfc spc sys
"""
CAPITAL = "Az Mass Miss Ark Del Ill La Ore Pa Tex Wash"  # ... in capitals only ...
NUMBERED = "nos? figs? pp op"  # ... and before a number.
# An initial (`J. K.`) keeps its full stop, but not before one of these, or at the caption's end.
BEGINNING = """
    A An The He She It They We You This That These There Here In At But One Many Some Her Their Our
    If When While What As After So Then Now Other Such More However Since
"""

LETTER = r"[^\W\d_]"
END = r"(?![^\W_])"  # no letter or digit follows
PART = r"[^\W_¼½¾²³¹]+"
WORD = rf"{PART}(?:[-/_]{PART})*"
NUMBER = r"\d*(?:[.,:]\d+)+"


def _any(words: str) -> str:
    return "|".join(words.split())


TOKEN = re.compile(
    rf"""
    </?[A-Za-z!][^<>]*>
    | https?://[^\s"<>]*[^\s"<>.,;:!?)'] | [\w.+-]+@{PART}(?:[.-]{PART})+
    | (?i:{LETTER}(?:\.{LETTER})+\.|(?:{_any(ALWAYS)})\.){END}
    | {LETTER}\.{END}(?!\s*$|\s+(?:{_any(BEGINNING)}){END})
    | (?:{"|".join(f"{w}|{w.upper()}" for w in CAPITAL.split())})\.{END}
    | (?i:{_any(NUMBERED)})\.(?=\s*\d)
    | (?i:can(?=not{END})|gon(?=na{END})|wan(?=na{END})|got(?=ta{END})|(?:gim|lem)(?=me{END}))
    | (?i:[yj]['’](?={LETTER}))
    | (?i:n['’]t){END} | (?i:{LETTER}+?(?=n['’]t{END}))
    | ['’][nN]['’] | (?<![^\W_])(?i:'t(?=(?:is|was){END})|['’](?:em|cause|til|n|\d\ds?){END})
    | ['’](?i:s|m|d|re|ve|ll|n){END}
    | (?i:(?:[odlcn]|qu)['’]{LETTER}{{2,}}|ma['’]am|ne['’]er|cap['’]n)
    | {LETTER}[^\W_]*(?:\.{LETTER}[^\W_]*)+
    | [A-Z]+(?:&[A-Z]+)+(?![a-z]) | [CFcf]\#{END} | [Cc]\+\+
    | (?:US|HK|NZ|C|A)\$ | [-+]?{NUMBER} | (?<![^\W_])[-+]\d+{END}
    | {WORD}\.(?=[,;:]) | {WORD}
    | \(\d{{3}}\)(?=\s?\d{{3}}-\d{{4}}{END})
    | [@\#]{LETTER}\w*
    | [:;=]['-]?(?:[()]|[DPp]{END})
    | [?!]+ | \.+ | -+ | _+ | \*+ | << | >> | \S
    """,
    re.VERBOSE,
)
WRITTEN = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
    "¢": "cents", "£": "#", "€": "$", "½": "1/2", "¼": "1/4", "¾": "3/4",
}  # fmt: skip
DROPPED = re.compile(r"[.?!,:;'\"`‘’“”«»–—―…]|\.+|-+|[^\u0000-\uffff]")


def words(text: str) -> list[str]:
    """Return the words of a caption in lower case."""
    tokens = (token for token in TOKEN.findall(text) if not DROPPED.fullmatch(token))
    return " ".join(map(_written, tokens)).split()


def _written(token: str) -> str:
    token = token.lower()
    if token.startswith("’") or token == "n’t":
        token = token.replace("’", "'")
    return re.sub(r"[][(){}¢£€½¼¾]", lambda found: WRITTEN[found[0]], token)
