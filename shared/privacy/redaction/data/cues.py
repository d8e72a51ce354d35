"""Cues: titles, ranks, jobs, relatives and phrases that introduce a name, in English and other European languages.

What follows a match is a name if it looks like one.
"""

from __future__ import annotations

import re

_TITLES = (
    r"mr|mrs|ms|miss|mx|dr|prof|professor|doctor|sir|madam|herrn?|frau|monsieur|madame|mme|señora?|sra|sr|signora?|"
    r"captain|rev|revd|reverend|father|judge|justice|dame|lord|lady|president|chancellor|senator|governor|mayor|minister|"
    r"coach|sergeant|inspector|constable|superintendent|"
    r"detective|officer|colonel|general|lieutenant|corporal|major general|sister|brother|uncle|aunt|auntie|nurse|"
    r"principal|"
    r"congressman|congresswoman|councillor|councilor|cllr|alderman|rabbi|imam|pastor|bishop|archbishop|deacon|vicar|"
    r"king|queen|prince|princess|chef|comrade|señorita|srta|mlle|mademoiselle|fräulein|"
    r"dott|dott\.ssa|dottor|dottoressa|avv|avvocato|geom|sig|sig\.ra|sig\.na|"
    r"doña|dña|dona|senhora?|maître|docteur|hr|fru|fröken|rouva|herra|pani|meneer|mevrouw|mevr|dhr|bay|bayan"
)
"""Matched in any case. Any capitalised word after a title is a name."""
ADDRESSED = frozenset(
    """
    mr mrs dr herr herrn frau fräulein monsieur madame mme mlle señor señora signor signora meneer mevrouw mevr dhr
    """.split()  # noqa: SIM905 - a column of words reads better than a list of literals
)
"""Titles behind which a name is one in lower case, too. Behind "ms", "sir" or "sister" stands any word."""
NOT_ADDRESSED = frozenset("author branch case field good key link list page review".split())  # noqa: SIM905 - as above
"""Last names that are things where "mr" is a merge request and "dr" disaster recovery."""
BEFORE_A_LADY = re.compile(
    r"\b(?:(?:mein|dein|sein|ihr|unser|eur|ein|kein|jed)e[rnms]?|ma|notre|votre|une|cette|ces)\s+\Z", re.I
)
"""Before "frau" or "madame" it makes a wife or a lady of the title, and what follows is any word."""
BEFORE_A_THING = re.compile(r"\b(?:the|an?|my|our|your|his|her|their|this|that|new|each|every|any|no)\s+\Z", re.I)
"""Before "mr" or "dr" it makes a thing of the title, or a profession."""
_STACKED = r"mag|ing|dipl\.?-ing|phil|habil|med|mult|prof|dr|rer\. ?nat|hon|h\.c|ra|dott|avv|ssa"
"""Words between a title and the name: "Frau Mag. Gruber"."""
_RANKS = (
    r"PC|DC|DS|DI|DCI|WPC|PCSO|Sgt|Insp|Supt|Capt|Cpt|Lt|Col|Maj|Cpl|Cmdr|Adm|Gen|Brig|Hon|Fr|Ald|Det|Sen|Rep|Gov|Atty|Att|"
    r"Pvt|Cst|Ofc|Messrs|Ing|Arq|Lic|Mag|Dra?|Don|Eng|Engr|Adv|Shri|Smt|Ustad|Sheikh|Hajji|Mwalimu"
)
"""Matched with their capitals; a word after one is a name if it is not an English word."""
_JOBS = (
    r"actor|actress|author|writer|editor|director|producer|singer|songwriter|drummer|guitarist|composer|pianist|goalkeeper|"
    r"striker|player|painter|photographer|artist|poet|journalist|reporter|chairman|chairwoman|ceo|cfo|cto|founder|owner|"
    r"secretary|spokesman|spokeswoman|lawyer|attorney|engineer|technician|mechanic|plumber|electrician|driver|courier|"
    r"receptionist|waiter|waitress|therapist|pharmacist|surgeon|researcher|scientist|trainer|pilot|midwife|clerk|caretaker|"
    r"janitor|host|hostess|winner|victim|witness|suspect|carer|caregiver|nanny|babysitter|childminder|cleaner|gardener|"
    r"housekeeper|barber|hairdresser|physio|physiotherapist|counsell?or|advis[eo]r|paramedic|postman|translator|"
    r"interpreter|recruiter|candidate|applicant|petitioner|respondent|defendant|plaintiff|claimant|appellant|deceased|"
    r"nominee|trustee|guardian|paralegal|notary|foreman|barista|bartender"
)
_FOREIGN_JOBS = (
    r"kolleg(?:e|in)|chefin|mitarbeiter(?:in)?|nachbar(?:in)?|vermieter(?:in)?|patient(?:in)?|kund(?:e|in)|arzt|ärztin|"
    r"collègue|voisine?|médecin|directrice|directeur|maîtresse|titulaire|patiente|"
    r"portera|portero|vecin[oa]|compañer[oa]|jef[ea]|titular|paciente|dueñ[oa]|"
    r"collega|vicin[oa]|titolare|paziente|portiere|intestat[oa] a"
)
_RELATIVES = (
    r"wife|husband|spouse|son|daughter|mother|father|mum|mom|dad|brother|sister|partner|friend|boss|manager|landlord|"
    r"landlady|colleague|coworker|neighbou?r|twin|aunt|auntie|uncle|cousin|nephew|niece|girlfriend|boyfriend|fianc[eé]e?|"
    r"flatmate|roommate|housemate|grandmother|grandfather|grandma|grandpa|grandson|granddaughter|nan|mate|kid|child|baby|"
    r"stepson|stepdaughter|stepfather|stepmother|godmother|godfather|godson|goddaughter|toddler|bestie|bff|"
    r"assistant|secretary|lawyer|solicitor|doctor|dentist|teacher|accountant|supervisor|tenant|ex|(?:\w+)-in-law"
)
_FOREIGN_RELATIVES = (
    r"tochter|sohn|ehefrau|ehemann|schwester|bruder|mutter|vater|freund|freundin|enkel|enkelin|"
    r"fille|fils|mari|épouse|sœur|frère|mère|père|copine|copain|hij[oa]|espos[oa]|marido|mujer|herman[oa]|madre|padre|"
    r"amig[oa]|novi[oa]|figli[oa]|marito|moglie|sorella|fratello|amic[oa]"
)

TITLE = re.compile(rf"(?:{_TITLES})\.?", re.I)
RANK = re.compile(rf"(?:{_RANKS})\.?")
TITLED = re.compile(
    rf"\b(?:{_TITLES})\b\.?\s{{1,8}}(?:(?:{_TITLES}|{_STACKED})\.{{1,2}}\s?(?:{_STACKED})?\.?\s{{1,8}}){{0,3}}",
    re.I,
)
# "PC Hollis" with its capitals.
RANKED = re.compile(rf"\b(?:{_RANKS})\.?\s{{1,4}}(?=[A-ZÀ-Þ])")
# A form's field, followed by two capitalised words.
FIELD = re.compile(
    r"(?:\b(?i:contact|kin|policy ?holder|insured|tenant|applicant|employee|candidate|attendee|traveller|passenger|"
    r"member|"
    r"signatory|referee|assignee|originator|remitter|debtor|creditor|borrower|guarantor|donor|nominee|petitioner|"
    r"respondent|plaintiff|defendant|consignee|shipper|ship to|bill to|deliver to|sold to|leaseholder|customer|client|"
    r"receiver|recipient|sender|beneficiary|payee|payer|guest|patient(?:in)?|versicherungsnehmer(?:in)?|empfänger(?:in)?|"
    r"kund(?:e|in)|destinataire|bénéficiaire|facturer à|entregar a|beneficiario|destinatario|ordonnateur)\s?:\s{1,4})"
    r"(?=[A-ZÀ-Þ][\w'’-]+ [A-ZÀ-Þ])"
)
# A JSON key with its value.
KEYED = re.compile(
    r"[\"'](?:first|last|given|family|middle|sur|maiden)_?(?:name)?[\"']\s?:\s?[\"'](?=[^\W\d_][\w'’ -]{1,40}[\"'])",
    re.I,
)
# The field of a form or of a program, and a value in capitals or with one: "Nom : DUPONT", `<LastName>Okonkwo`. What
# goes on as code does (`lastName: Text(40)`) is no name.
FORM = re.compile(
    r"(?:(?<![^\W_])|(?<=[a-z])(?=[A-Z]))(?i:(?:first|last|given|family|middle|maiden|full|sur)[ _]?name|"
    r"(?:vor|nach|familien|geburts)name|(?:konto|karten)inhaber(?:in)?|pr[ée]nom|nom(?: de famille)?|nombre|apellidos?|"
    r"cognome|nome|sobrenome|achternaam|voornaam|förnamn|efternamn|fornavn|etternavn|imi[ęe]|nazwisko|soyad[ıi])"
    r"[\"'\\]{0,2}\s{0,2}[:=>]\s{0,2}[\"'\\]{0,2}"
    r"(?=(?:[A-ZÀ-Þ][^\W\d_A-Z]+|[A-ZÀ-Þ]{2,})(?:['’-][^\W\d_]+)*(?![\w(\[]|\.\w))"
)
NAMED = re.compile(
    r"(?:\b(?:sur|first |last |middle |maiden |given |family |full )?name(?:s|'s|’s)?\b"
    r"(?:\s{1,8}on\s{1,8}(?:(?:the|my|this|that)\s{1,8}\w+|it|card))?"
    r"(?:\s{1,8}(?:is|was|should be|to|as|reads|will be)\b|\s?[:=?-])?\s{1,8}(?:now\s{1,8})?|\bnamed\s{1,8}|"
    r"\bin the names? of\s{1,8}|"
    r"\b(?:she|he|who|they)(?:['’]?s|['’]re| is| are| was)? called\s{1,8}|\b(?:ich heiße|je suis|me llamo|ich bin|"
    r"mein name ist|je m['’]appelle|mi chiamo|il mio nome è|mi nombre es|mon nom est|chamo-me|meu nome é|mijn naam is|"
    r"ik heet|jag heter|jeg heter|jeg hedder|nazywam się|benim adım|soy)\s{1,8}|\b(?:todo|fixme|xxx|hack)\()",
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
FOREIGN = re.compile(rf"\b(?:{_FOREIGN_RELATIVES}|{_FOREIGN_JOBS})\b,?:?\s{{1,8}}", re.I)
"""Jobs and relatives in texts that are not English."""
# "Hi Sam, it's Ignatius.": the writer's name after a greeting.
INTRODUCED = re.compile(
    r"\b(?:hi|hello|hey|hiya|good (?:morning|afternoon|evening)|morning)\b[^.!?\n]{0,24}?[,.!]?\s"
    r"(?:it['’]?s|this is|here is|i am|i['’]?m)\s(?=[A-ZÀ-Þ][^\W\d_]+(?:[.,!]| from\b| here\b| again\b| at\b))",
    re.I,
)
SIGN_OFF = re.compile(
    r"(?:\b(?:regards|sincerely|faithfully|truly|wishes|best|cheers|thanks|thank you|thanks again|thx|ta|love|"
    r"greetings|respectfully|cordially|bye|"
    r"grüße|gruß|lg|vg|mfg|saluti|saludos|abrazo|atentamente|atenciosamente|groet(?:en|jes)?|hälsningar|hilsen|"
    r"pozdrawiam|cordialement|bien à vous|gracias|grazie|merci|danke|obrigad[oa])\b"
    r"[,.!]*\s{0,8}(?:\n\s{0,8}|(?<=,)\s{0,8}|(?<=[!.])\s{0,8}(?=[^\W\d_]+\s{0,8}$))|(?:^|"
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
    r"(?:(?<=^)|(?<=\n)|(?<=[.!?] )|(?<=\n[-*•] )|(?<=^[-*•] ))"
    r"(?=[A-ZÀ-Þ](?:[^\W\d_A-Z]|['’]|-[A-ZÀ-Þ]?)+(?: [A-ZÀ-Þ][\w'’-]+)?: )|"
    r"(?:(?<=^)|(?<=\n)|(?<=[.!?] ))(?=[A-ZÀ-Þ][^\W\d_]+, (?:can|could|would|will|please|may|you|thank|thanks|are you|"
    r"do you|what|why|how|when|where)\b)|"
    r"(?<![\w@.])(?=[A-ZÀ-Þ][\w'’-]+(?: [A-ZÀ-Þ][\w'’-]+)? (?:from|in|at) (?:the |your |our )?"
    r"(?:[Bb]illing|[Aa]ccounts|[Ss]ales|[Ss]upport|HR|IT|[Rr]eception|[Ff]inance|[Mm]arketing|[Ll]ogistics|[Pp]ayroll|"
    r"[Pp]rocurement|[Ll]egal|front desk|help ?desk|warehouse|workshop|mailroom|call cent(?:re|er))\b)"
)
# "Temperance Blackwood (sister)": the relation stands behind the name.
RELATED = re.compile(
    rf"(?<![\w@.])(?=[A-ZÀ-Þ][\w'’-]+ [A-ZÀ-Þ][\w'’-]+ \((?:(?:my|his|her|their|the) )?(?:{_RELATIVES}|{_JOBS})\))",
    re.I,
)
TOWARDS = re.compile(
    r"\b(?:(?:tell|told|ask|asked|let|give|gave|show|showed|sent) (?:him|her|them|us|me|u)|"
    r"(?:shout|yell|smil|wav|laugh)(?:ed|ing) at|starring|featuring|tell|told|ask|asked|let|spoke (?:to|with)|"
    r"speak (?:to|with)|speaking (?:to|with)|talk(?:ed|ing)? (?:to|with)|met|meet|thanks|thank you|sorry|"
    r"hi|hello|hey|dear|love from|greetings from|(?:\w+ed|written|sold|sent|made|taken|given|and|or) by|"
    r"invoice for|tickets? for|order for|parcel for|package for|booking for|letter for|call(?:ed)?|contact(?:ed)?|"
    r"email(?:ed)?|phone[d]?|paid|pay|"
    r"thank|remind(?:ed)?|invited?|ping(?:ed)?|(?:re)?assign(?:ed)? (?:to|from)|hand(?:ed)? over to|married to|"
    r"on behalf of|mailbox of|mailbox for|escalated? to|reports? to|"
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
# "I'm anna lee,": in lower case only the words around it show that it is a name.
SELF = re.compile(
    r"\b(?:i am|i'm|i’m|this is|its|it's|im|my name is|names?)\s{1,8}(?=[^\W\d_]{3,}\s[^\W\d_]{3,}(?:[,.;!]|$| and\b|"
    r" from\b| here\b| calling\b| i\b))",
    re.I,
)
BESIDE = re.compile(r"(?:,| and| or| nor| but| &| und| et| y|, and)\s{1,8}", re.I)
# "from June", "by May": before a month these are not cues.
JOINING = re.compile(
    r"\b(?:from|by|for|of|to|with|and|or|that|has|is|was|see|but|if|because|whether|in|since|until|like)\W{1,8}$",
    re.I,
)
# A verb of people behind a lower-case first name: "and now raj wont look at me".
DOING = re.compile(
    r"\b(?:and now|but now|and then|so then|cause|cuz|coz|because|bc|when|while|since|until|that|now|says?|said)\s{1,4}"
    r"(?=[^\W\d_]{3,} (?:wont|won['’]t|doesn?['’]?t|didn?['’]?t|isn?['’]?t|wasn?['’]?t|cant|can['’]t|hasn?['’]?t|"
    r"says?|said|told|thinks|keeps|wants|hates|loves|sent|left|quit|wrote|called|asked|knows|came|went|got|gave|"
    r"started|is like)\b)",
    re.I,
)
