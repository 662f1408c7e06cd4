"""Words of captions as the COCO evaluation cuts them: those of Stanford's PTBTokenizer 3.4.1, in lower case.

The tokenizer takes, at every place, the longest of what its kinds of tokens match there, what must follow a token
counted in; of equally long ones the first. The kinds below are written anew, from what is documented of it and from
what it makes of probes; ``tests/fixtures/ptb_captions.json`` holds its own answers. A character of no kind, such as
most pictographs, is left out as it leaves it out. Each caption is read by itself, where the evaluation reads all as one
text, so that a last word with its dot ("no.", "in a T.") goes there with what begins the next.
"""

import functools
import re

# What the COCO evaluation drops. It names brackets in capitals and compares with lower case, so that those stay.
DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
SAID = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
SAID |= {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&mdash;": "--", "&ndash;": "--", "&MD;": "--"}
SAID |= {"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"} | dict.fromkeys("€₠¤", "$")
SAID |= {"£": "#", "¢": "cents"}

_NO_DIGITS = "\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u209c\u2150-\u2189\u2460-\u24ff\u2776-\u2793"  # numbers, but signs
# Not U+0345, which is a small iota to whom case is the same: two ways to read each letter never end.
_ABOVE = "[\u0300-\u0344\u0346-\u036f\u0591-\u05bd\u064b-\u065e\u0900-\u0903\u093c\u093e-\u094e"
_ABOVE += "\u0e31\u0e34-\u0e3a\u0e47-\u0e4e]"
_L = rf"(?:[^\W\d_{_NO_DIGITS}]|{_ABOVE})"  # a letter, or what stands above or below one
_A, _UPPER = rf"(?:[^\W_{_NO_DIGITS}]|{_ABOVE})", "(?-i:[A-Z])"  # the same or a digit; a capital
_S = "[ \t\u00a0\u2000-\u200a\u3000]"
_AP = "(?:['\u2019\u0092]|&apos;)"  # an apostrophe
_APS = "(?:['\u2019\u0092`\u2018\u0091\u201b]|&apos;)"  # and what may stand for one inside a word
_END = rf"(?:{_S}|$)"
_WORD = rf"{_L}{_A}*(?:[.!?]{_L}{_A}*)*"
_NUM = r"(?:[.,:]?\d+(?:[.,:]\d+)*)"
_MARKS = "[,;:\u3001]"
_HYPHEN = "[-_\u058a\u2010\u2011]"
_PART = rf"(?:[dol]{_APS}{_A})?{_A}+"
_ACRONYM = r"[a-z](?:\.[a-z])*"
_SLASHED = "[a-z0-9]+(?:-[a-z]+){0,2}"
_DASHED = r"[a-z0-9][a-z0-9.,]*(?:-(?:[a-z](?:\.[a-z])+\.|[a-z0-9]+))+"
_TAG = (
    r"<(?:[!?][a-z-][^>\r\n]*|/[a-z][\w:.-]*|[a-z][\w:.-]*(?:[ ]+[a-z][\w:.-]*(?:[ ]*=[ ]*"
    r"(?:'[^']*'|\"[^\"]*\"|[a-z][\w:.-]*))?)*[ ]*/?)[ ]*>"
)
_URL, _URL_END = r"[^\s\"<>|()]+", r"[^\s\"<>|.!?(){},-]"
_EYES, _MOUTHS = "[<>]?[:;=]", r"[-o*']?(?-i:[()DPdpO\\{@|\[\]])"
_FACE = r"[-^x=~<>']"
_SIGNS = "+%&~\\^|\\\\¦§¨©¬®¯°±²³´µ¶·¸¹º×÷<>\u2016\u2017\u2020-\u2023\u2030-\u2038\u203b\u203e-\u2042\u2044"
_SIGNS += "\u207a-\u207f\u208a-\u208e\u2100-\u214f\u2190-\u21ff\u2200-\u2bff\u3012\u30fb\uff01-\uff0f\uff1a-\uff20"
_SIGNS += "\uffe0\uffe1\uffe5\uffe6"


def _any_of(words: str) -> str:
    """A pattern of one of them, the longest first; a word with a capital here needs its own."""
    patterns = [
        (f"(?-i:{word[0]}){re.escape(word[1:])}" if word[0].isupper() else re.escape(word)) for word in words.split()
    ]
    return "|".join(sorted(patterns, key=len, reverse=True))


# Words whose dot is always theirs.
_ABBREVIATIONS = _any_of(
    "al ala apr ariz Ark assn aug Az bancorp bhd bldg bros calif co colo conn corp cos ct dak dec Del ed.d esq est "
    "etc ext feb fla fri ga Ill inc ind intl jan jr jul jun kan kans ky La ltd mar Mass md mich minn Miss mo mon mont "
    "neb nev nov oct okla Ore Pa penn ph.d plc ppte pptes ppty pptys pte ptes pty ptys sep sept seq sq sr sys tel "
    "tenn Tex thu thurs tue tues univ va vt Wash wed wis wisc wyo"
)
# The same of words before a name, and of some others.
_TITLES = _any_of(
    "a.k.a adj adm adv alex assoc asst atty attys ave blvd brig capt cf cie cmdr col comdr cpl dept det dr drs elec "
    "ens ft gen gov govs hon insp invt jos lieut lt maj messrs mfg mlle mme mr mrs ms msgr mt mtg natl pfc ph pres "
    "prof profs pvt rd rep reps rev rt sen sens sfc sgt spc st ste supt supts treas v vs wm"
)
# What names of files end in.
_FILES = _any_of(
    "bat bmp c cgi class cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov mp3 pdf php pl png ppt ps py "
    "sql tar txt wav x xml zip"
)
# Words whose dot is theirs if a number follows.
_BEFORE_NUMBERS = _any_of("art bldg ca fig figs no nos op pp prop")
# Words that begin a sentence behind a single letter and its dot.
_BEGINS = _any_of(
    "a about according additionally after an as at but did during earlier he her here how however if in it last many "
    "more mr. ms. now once one other our she since so some such that the their then there these they this we what "
    "when while who why yet you"
)

# A kind each: what is a token, as the one group that matches, and what must follow it.
_KINDS = [
    r"(can)not|(gon|wan)na|(got)ta|(lem|gim)me",
    "('t)(?:is|was)",
    rf"({_TAG})",
    rf"({_WORD}){_AP}(?:[msd]|re|ve|ll)",
    rf"({_L}*(?-i:[A-MO-Za-mo-z]))n{_APS}t",
    rf"({_WORD})",
    rf"({_AP}n{_AP}?|[ldj]{_AP}|dunkin{_AP}|somethin{_AP}|ol{_AP}|{_AP}em|(?-i:[A-HJ-XZn]){_APS}{_L}{{2,}}|{_AP}[2-9]0s|"
    rf"{_AP}till?|{_L}+[aeiouy]{_APS}(?-i:[aeiouA-Z]){_L}*|{_AP}cause|cont'd\.?|nor'easter|c'mon|e'er|s'mores|ev'ry|"
    r"li'l|nat'l)",
    rf"(y{_AP}){_L}",
    rf"((?:svn|svn\+ssh|https?)://{_URL}{_URL_END})",
    r"((?:www\.(?:[^\s\"<>|.!?(){},]+\.)+[a-z]{2,4}|(?:(?-i:[^\s\"`'|!(){}$,-_])+\.)+(?:com|net|org|edu))"
    rf"(?:/{_URL}{_URL_END})?)",
    r"((?:<|&lt;)?[a-z0-9][^\s\"<>|(){}]*@(?:[^\s\"<>|(){}.]+\.)*[^\s\"<>|(){}.]+(?:>|&gt;)?)",
    r"(@[a-z_][a-z_0-9]*)",
    rf"(\#{_L}+)",
    rf"({_AP}(?:[msd]|re|ve|ll))(?:[^a-z]|$)",
    "([\u2019\u0092](?:[msd]|re|ve|ll))",
    rf"(n{_APS}t)(?:[^a-z]|$)",
    r"(\d{1,2}[-/]\d{1,2}[-/]\d{2,4})",
    rf"([-+]?{_NUM})",
    r"((?:\d{1,4}[- \u00a0])?\d{1,4}(?:\\?/|\u2044)\d{1,4})",
    "([¼½¾\u2153-\u215e])",
    rf"(-(?:RRB|LRB|RCB|LCB|RSB|LSB)-|C\.D\.s|pro-|anti-|S(?:&|&amp;)P-500|S(?:&|&amp;)Ls|Cap{_AP}n|c{_AP}est)",
    rf"({_SLASHED}(?:\\?/{_SLASHED}){{1,2}})",
    rf"({_UPPER}*\$|\#|[¢£¤¥₠₤€])",
    rf"([a-z])\.{_S}+(?-i:[A-Z])(?<=(?=(?:{_BEGINS}){_S}).)",
    rf"((?:{_BEFORE_NUMBERS})\.){_S}?\d",
    rf"((?:{_ABBREVIATIONS})\.)(?:..)?",
    rf"((?:{_TITLES}|{_ACRONYM})\.)",
    rf"({_ACRONYM}|(?:Canada|Sino|Korean|EU|Japan|non)-U\.S\.?|U\.S\.-(?:U\.K|U\.S\.S\.R)\.?){_S}",
    rf"({_AP}\d\d){_END}",
    rf"({_WORD}\.){_MARKS}",
    rf"([a-z0-9]+(?:\.[a-z0-9]+)*\.(?:{_FILES}))(?:{_S}|$|[.?!,\"'<])",
    r"((?:\(\d{2,3}\)[ \u00a0]?|(?:\+\+?)?(?:\d{2,4}[- \u00a0])?\d{2,4}[- \u00a0])\d{3,4}[- \u00a0]?\d{3,5}|"
    r"(?:(?:\+\+?)?\d{2,4}\.)?\d{2,4}\.\d{3,4}\.\d{3,5})",
    rf"({_EYES}{_MOUTHS})(?:[^a-z0-9]|$)",
    rf"({_FACE}_{_FACE}|\({_FACE}[_.]?{_FACE}\)|\([\^x=~<>]-[\^x=~<>'`]\))",
    r"(<<|>>|&(?:lt|gt|amp|quot|mdash|ndash|MD);|-+|@+|_+|\#+|\*+|(?:\\\*){1,3}|[?!]+|[.,;:/=()\[\]{}¡¿\u3001\u3002])",
    "([\u207a\u207b\u208a\u208b]?(?:[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+|[\u2080-\u2089]+))",
    rf"({_DASHED})",
    rf"({_DASHED}\.){_MARKS}",
    rf"({_PART}(?:{_HYPHEN}{_PART})*)",
    rf"({_PART}(?:{_HYPHEN}{_PART})*\.){_MARKS}",
    rf"({_UPPER}+(?:(?:[+&]|&amp;){_UPPER}+)+)",
    f"([{_SIGNS}])",
    r"(c\+\+|[cf]\#)",
    r"(&(?:HT|TL|UR|LR|QC|QL|QR|odq|cdq|\#\d+);|&[aeiou](?:acute|grave|uml);)",
    r"(\.[ \u00a0](?:\.[ \u00a0])+\.|\.\.\.+|\u2026)",
    r"(&quot;|\"|[`']')[a-z0-9$]?",
    r"(')[a-z]\S",
    rf"([`\u2018-\u201f\u0082\u0084\u0091-\u0094\u2039\u203a\u00ab\u00bb]{{1,2}}|{_AP})",
]
_COMPILED = [re.compile(kind, re.IGNORECASE) for kind in _KINDS]
_CONTRACTED = re.compile(rf"{_AP}(?:[msd]|re|ve|ll)|n{_APS}t", re.IGNORECASE)
_QUOTES = re.compile(r"(?:['`\"\u0082\u0084\u0091-\u0094\u2018-\u201f\u2039\u203a\u00ab\u00bb]|&(?:apos|quot);)+")
_QUOTED = [("''|`'|&quot;|\"", "''"), ("&apos;|[\u0092\u2019\u203a]", "'"), ("[\u0091\u2018\u201b\u2039]", "`")]
_QUOTED += [("[\u0093\u201c\u00ab]", "``"), ("[\u0094\u201d\u00bb]", "''")]
# What most of a caption is, without a look at the kinds: spaces, with marks that are dropped, and words of letters.
_SPACES = re.compile(r"(?:\s|&nbsp;|[.,;:!?](?=\s|$))+")
_PLAIN = re.compile(r"[a-z]+(?=[,;:!?]?(?:\s|$))", re.IGNORECASE)
_SPLIT = frozenset(["cannot", "gonna", "wanna", "gotta", "lemme", "gimme"])


def ptb_words(text: str) -> list[str]:
    """The words of ``text``, punctuation left out. What the tokenizer keeps together around a space, such as "3 1/2",
    is cut there, as the scorers of the COCO evaluation cut it."""
    return list(_cut(text))


@functools.lru_cache(maxsize=2**17)  # every score of captions asks again
def _cut(text: str) -> tuple[str, ...]:
    text = text.replace("\u00ad", "")
    words, place = [], 0
    while place < len(text):
        if space := _SPACES.match(text, place):
            place = space.end()
        elif (plain := _PLAIN.match(text, place)) and plain[0].lower() not in _SPLIT:
            words.append(plain[0])
            place = plain.end()
        else:
            found = [match for kind in _COMPILED if (match := kind.match(text, place))]
            best = max(found, key=lambda match: match.end(), default=None)
            if best is None:
                place += 1
                continue
            token = next(group for group in best.groups() if group)
            words.append(token)
            place += len(token)
    return tuple(part for word in words if (said := _said(word)) not in DROPPED for part in said.split())


def _said(token: str) -> str:
    """A token as the tokenizer writes it, in lower case."""
    if token in SAID:
        return SAID[token]
    if 3 <= len(token) <= 4 and not token.strip("-"):
        return "--"
    if not token.strip(". \u00a0\u2026"):
        return "..." if len(token) > 1 else "."
    if _QUOTES.fullmatch(token) or _CONTRACTED.fullmatch(token):
        for pattern, said in _QUOTED:
            token = re.sub(pattern, said, token)
        return token.lower()
    if len(token) > 1:
        token = token.replace("(", "-LRB-").replace(")", "-RRB-")
    return token.lower()
