"""Words that announce a name: what follows their match is one, if it looks like one."""

from __future__ import annotations

import re

_TITLES = (
    r"mr|mrs|ms|miss|mx|dr|prof|professor|doctor|sir|madam|herr|frau|monsieur|madame|mme|señora?|sra|sr|signora?|"
    r"captain|rev|father|judge|dame|lord|lady|president|chancellor|senator|governor|mayor|minister|coach|sergeant|inspector|"
    r"detective|officer|colonel|general|lieutenant|sister|brother|uncle|aunt|auntie|nurse|principal|mayor|congressman|king|queen|"
    r"prince|princess|saint|chef|comrade|señorita|mlle|fräulein"
)
_JOBS = (
    r"actor|actress|author|writer|editor|director|producer|singer|songwriter|drummer|guitarist|composer|pianist|goalkeeper|striker|"
    r"player|painter|photographer|artist|poet|journalist|reporter|chairman|chairwoman|ceo|cfo|cto|founder|owner|secretary|spokesman|"
    r"spokeswoman|lawyer|attorney|engineer|technician|mechanic|plumber|electrician|driver|courier|receptionist|waiter|waitress|"
    r"therapist|pharmacist|surgeon|researcher|scientist|trainer|pilot|midwife|clerk|caretaker|janitor|host|hostess|winner|victim|witness|suspect"
)
_RELATIVES = (
    r"wife|husband|spouse|son|daughter|mother|father|mum|mom|dad|brother|sister|partner|friend|boss|manager|landlord|"
    r"landlady|colleague|coworker|neighbou?r|twin|aunt|auntie|uncle|cousin|nephew|niece|girlfriend|boyfriend|fianc[eé]e?|"
    r"flatmate|roommate|housemate|grandmother|grandfather|grandma|grandpa|grandson|granddaughter|nan|mate|kid|child|"
    r"assistant|secretary|lawyer|solicitor|doctor|dentist|teacher|accountant|supervisor|tenant|ex|(?:\w+)-in-law"
)
TITLE = re.compile(rf"(?:{_TITLES})\.?", re.I)
TITLED = re.compile(rf"\b(?:{_TITLES})\b\.?\s{{1,8}}", re.I)
NAMED = re.compile(
    r"(?:\b(?:sur|first |last |middle |maiden |given |family |full )?name(?:s|'s|’s)?\b"
    r"(?:\s{1,8}on\s{1,8}(?:the|my)\s{1,8}\w+)?"
    r"(?:\s{1,8}(?:is|was|should be|to|as|reads|will be)\b|\s?[:=?-])?\s{1,8}(?:now\s{1,8})?|\bnamed\s{1,8}|"
    r"\bin the names? of\s{1,8}|"
    r"\b(?:she|he|who|they)(?:['’]?s|['’]re| is| are| was)? called\s{1,8}|\b(?:ich heiße|je suis|me llamo|ich bin|"
    r"mein name ist|je m'appelle|mi chiamo|soy)\s{1,8})",
    re.I,
)
STRONG = re.compile(
    r"(?:\b(?:signed by|signed for by|a/c holder|account ?holder|holder|cardholder|beneficiary|recipient|receiver|"
    r"sender|"
    r"payee|attn|attention|c/o|caller|customer|client|patient|passenger|guest|buyer|seller|contact person|person|"
    r"delivered to|attention of)\b\s?[:.=-]?\s{1,8}|"
    rf"\b(?:{_RELATIVES}|{_JOBS})\b,?:?\s{{1,8}}|\b(?:photo|credit|author|contact|written|text|story|names?|executor|heir|witness):?\s{{1,8}}|"
    r"(?:^|[\n>\"“])\s{0,8}"
    r"(?:hi|hello|hey|hiya|dear|good (?:morning|afternoon|evening)|morning|hallo|bonjour|ciao|hola)"
    r"(?: there)?,?\s{1,8}(?=[^\W\d_]+(?: [^\W\d_]+)?\s{0,8}[,!.:\n]))",
    re.I,
)
SIGN_OFF = re.compile(
    r"(?:\b(?:regards|sincerely|faithfully|truly|wishes|best|cheers|thanks|thank you|thanks again|thx|ta|love|"
    r"greetings|respectfully|cordially|bye|"
    r"grüße|saluti|cordialement)\b[,.!]*\s{0,8}(?:\n\s{0,8}|(?<=,)\s{0,8}|(?<=[!.])\s{0,8}(?=[^\W\d_]+\s{0,8}$))|(?:^|"
    r"\n)\s{0,8}[-–—~]{1,2}\s{0,8}(?=[^\W\d_]+(?: [^\W\d_]+)?\s{0,8}(?:$|\n))|"
    r"\s[-–—]\s{0,8}(?=[^\W\d_]+\s{0,8}$))",
    re.I,
)
# "Anna: hello", "Anna wrote:", "Anna here": the name stands before the cue, so the match is empty and the cue is ahead.
SPEAKER = re.compile(
    r"(?<![\w@.])(?=[A-ZÀ-Þ][\w'’-]+(?: [A-ZÀ-Þ][\w'’-]+)?(?: here\b(?! is| are| to| for)|"
    r"\s{1,8}(?:wrote|joined|speaking|"
    r"said|says|told|asked|promised|"
    r"claimed|thinks|explained|replied|answered|complained|insisted|phoned|rang|schrieb|left the chat|was born|died|"
    r"hier)\b))|"
    r"(?:(?<=^)|(?<=\n)|(?<=[.!?] ))(?=[A-ZÀ-Þ](?:[^\W\d_A-Z]|['’-])+(?: [A-ZÀ-Þ][\w'’-]+)?: )|"
    r"(?:(?<=^)|(?<=\n)|(?<=[.!?] ))(?=[A-ZÀ-Þ][^\W\d_]+, (?:can|could|would|will|please|may|you|thank|thanks|are you|"
    r"do you|what|why|how|when|where)\b)"
)
TOWARDS = re.compile(
    r"\b(?:(?:shout|yell|smil|wav|laugh)(?:ed|ing) at|starring|featuring|tell|told|ask|asked|let|spoke (?:to|with)|"
    r"speak (?:to|with)|speaking (?:to|with)|talk(?:ed|ing)? (?:to|with)|met|meet|thanks|thank you|sorry|"
    r"hi|hello|hey|dear|love from|greetings from|(?:\w+ed|written|sold|sent|made|taken|given|and|or) by|"
    r"invoice for|tickets? for|order for|parcel for|package for|booking for|letter for|call(?:ed)?|contact(?:ed)?|"
    r"email(?:ed)?|phone[d]?|paid|pay|"
    r"whether|because|according to|it was|wasn't|not)\b[,:;!]?\s{1,8}",
    re.I,
)
WEAK = re.compile(
    r"(?:\b(?:i am|i'm|i’m|im|it's|it’s|its|it is|this is|hi|hello|hey|dear|morning|spoke (?:to|with)|speak (?:to|"
    r"with)|"
    r"speaking to|talk(?:ed|ing)? (?:to|with)|ask(?:ed)?|tell|told|contact(?:ed)?|call|called|email(?:ed)?|met|meet|"
    r"met with|see|saw|with|for|"
    r"from|by|to|and|or|of|remove|add|refund|pay|paid|let|thanks|sorry|like|that|says?|does|did|has|is|was|"
    r"who(?: the hell)? is|named|where is|if|whether|because|but)\b[,:;!]?\s{1,8})",
    re.I,
)
HOME = re.compile(
    r"(?:\b(?:live[sd]?|living|reside[sd]?|residing|moved|moving|relocat(?:ed|ing)|born|based|grew up|"
    r"resident)\b[^.!?\n]{0,14}\b(?:in|to|near|of|from|at)|"
    r"\b(?:i am|i'm|i’m|am|[A-ZÀ-Þ][\w'’-]+) from)\s{1,8}$"
)
# "I'm anna lee," - in lower case nothing but the place after it and what follows says that it is a name.
SELF = re.compile(
    r"\b(?:i am|i'm|i’m|this is|its|it's|im|my name is|names?)\s{1,8}(?=[^\W\d_]{3,}\s[^\W\d_]{3,}(?:[,.;!]|$| and\b|"
    r" from\b| here\b| calling\b| i\b))",
    re.I,
)
BESIDE = re.compile(r"(?:,| and| or| nor| but| &| und| et| y|, and)\s{1,8}", re.I)
