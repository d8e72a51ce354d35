"""Words that stand before a name: titles, ranks, jobs and relatives, in English and other European languages."""

from __future__ import annotations

TITLES = (
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
STACKED = r"mag|ing|dipl\.?-ing|phil|habil|med|mult|prof|dr|rer\. ?nat|hon|h\.c|ra|dott|avv|ssa"
"""Words between a title and the name: "Frau Mag. Gruber"."""
RANKS = (
    r"PC|DC|DS|DI|DCI|WPC|PCSO|Sgt|Insp|Supt|Capt|Cpt|Lt|Col|Maj|Cpl|Cmdr|Adm|Gen|Brig|Hon|Fr|Ald|Det|Sen|Rep|Gov|Atty|Att|"
    r"Pvt|Cst|Ofc|Messrs|Ing|Arq|Lic|Mag|Dra?|Don|Eng|Engr|Adv|Shri|Smt|Ustad|Sheikh|Hajji|Mwalimu"
)
"""Matched with their capitals; a word after one is a name if it is not an English word."""
JOBS = (
    r"actor|actress|author|writer|editor|director|producer|singer|songwriter|drummer|guitarist|composer|pianist|goalkeeper|"
    r"striker|player|painter|photographer|artist|poet|journalist|reporter|chairman|chairwoman|ceo|cfo|cto|founder|owner|"
    r"secretary|spokesman|spokeswoman|lawyer|attorney|engineer|technician|mechanic|plumber|electrician|driver|courier|"
    r"receptionist|waiter|waitress|therapist|pharmacist|surgeon|researcher|scientist|trainer|pilot|midwife|clerk|caretaker|"
    r"janitor|host|hostess|winner|victim|witness|suspect|carer|caregiver|nanny|babysitter|childminder|cleaner|gardener|"
    r"housekeeper|barber|hairdresser|physio|physiotherapist|counsell?or|advis[eo]r|paramedic|postman|translator|"
    r"interpreter|recruiter|candidate|applicant|petitioner|respondent|defendant|plaintiff|claimant|appellant|deceased|"
    r"nominee|trustee|guardian|paralegal|notary|foreman|barista|bartender"
)
FOREIGN_JOBS = (
    r"kolleg(?:e|in)|chefin|mitarbeiter(?:in)?|nachbar(?:in)?|vermieter(?:in)?|patient(?:in)?|kund(?:e|in)|arzt|ärztin|"
    r"collègue|voisine?|médecin|directrice|directeur|maîtresse|titulaire|patiente|"
    r"portera|portero|vecin[oa]|compañer[oa]|jef[ea]|titular|paciente|dueñ[oa]|"
    r"collega|vicin[oa]|titolare|paziente|portiere|intestat[oa] a"
)
RELATIVES = (
    r"wife|husband|spouse|son|daughter|mother|father|mum|mom|dad|brother|sister|partner|friend|boss|manager|landlord|"
    r"landlady|colleague|coworker|neighbou?r|twin|aunt|auntie|uncle|cousin|nephew|niece|girlfriend|boyfriend|fianc[eé]e?|"
    r"flatmate|roommate|housemate|grandmother|grandfather|grandma|grandpa|grandson|granddaughter|nan|mate|kid|child|baby|"
    r"stepson|stepdaughter|stepfather|stepmother|godmother|godfather|godson|goddaughter|toddler|bestie|bff|"
    r"assistant|secretary|lawyer|solicitor|doctor|dentist|teacher|accountant|supervisor|tenant|ex|(?:\w+)-in-law"
)
FOREIGN_RELATIVES = (
    r"tochter|sohn|ehefrau|ehemann|schwester|bruder|mutter|vater|freund|freundin|enkel|enkelin|"
    r"fille|fils|mari|épouse|sœur|frère|mère|père|copine|copain|hij[oa]|espos[oa]|marido|mujer|herman[oa]|madre|padre|"
    r"amig[oa]|novi[oa]|figli[oa]|marito|moglie|sorella|fratello|amic[oa]"
)
