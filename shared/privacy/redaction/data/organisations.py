"""Firms, brands and works named after people, and the words that are part of place and firm names.

A listed name is not a person unless a word before it says so ("Mr Morgan Stanley"). Names that are as often a person's
(`OFTEN_PEOPLE`) count as a firm only in a text about business.
"""

from __future__ import annotations

_FIRMS = """
    abercrombie fitch|alfa romeo|allen overy|ann summers|ann taylor|anheuser busch|archer daniels|arthur andersen|
    aston martin|aunt jemima|baker hughes|baker mckenzie|baker tilly|banana republic|bang olufsen|bankers trust|
    barnes noble|baskin robbins|bath body|bausch lomb|bear stearns|becton dickinson|bed bath|ben jerry|ben jerry's|
    ben sherman|berkshire hathaway|betty crocker|black decker|bobbi brown|bonne maman|booz allen|boston dynamics|
    briggs stratton|bristol myers|brooks brothers|burger king|calvin klein|cap gemini|captain morgan|carl zeiss|
    charlotte tilbury|chase manhattan|chef boyardee|chuck e|clifford chance|coca cola|colgate palmolive|cole haan|
    costa coffee|crate barrel|credit suisse|dairy queen|danske bank|deutsche bank|dolce gabbana|dom pérignon|
    dow corning|dow jones|dr martens|dr oetker|dr pepper|duncan hines|dun bradstreet|dunkin donuts|eli lilly|
    elizabeth arden|ermenegildo zegna|ernst young|estee lauder|estée lauder|fannie mae|famous amos|fiat panda|
    fiat tipo|fisher price|fortnum mason|franklin templeton|freddie mac|freshfields bruckhaus|general electric|
    giorgio armani|goldman sachs|grant thornton|green giant|harley davidson|harry winston|harvard business|
    harvey nichols|hawker siddeley|head shoulders|helena rubinstein|helly hansen|henry schein|hewlett packard|
    hugo boss|jack daniel|jack daniels|jack daniel's|jack wolfskin|jehovah's witnesses|jim beam|jimmy choo|
    jo malone|john deere|john hancock|johns hopkins|johnnie walker|johnny walker|johnson controls|johnson johnson|
    jos a bank|jose cuervo|josé cuervo|jp morgan|jpmorgan chase|julius baer|julius meinl|kate spade|karl lagerfeld|
    kimberly clark|krispy kreme|land rover|lane bryant|lehman brothers|levi strauss|liberty mutual|little caesars|
    lloyds banking|lord taylor|louis vuitton|madame tussauds|marc jacobs|marks spencer|mary kay|
    massachusetts mutual|max factor|max planck|men's wearhouse|mercedes benz|merck sharp|merrill lynch|michael kors|
    moët chandon|mona lisa|monte carlo|morgan stanley|morrison foerster|nat west|neiman marcus|nina ricci|
    northrop grumman|old spice|oscar mayer|osh kosh|orville redenbacher|otis spunkmeyer|paco rabanne|papa john|
    papa john's|papa johns|paul smith|pepperidge farm|perrier jouët|peter pan|pierre cardin|pizza hut|polo ralph|
    pratt whitney|price waterhouse|procter gamble|quaker oats|ralph lauren|ray ban|reckitt benckiser|red bull|
    rémy martin|remy martin|robert bosch|robert half|roche bobois|rolls royce|sallie mae|sam adams|sara lee|
    schneider electric|scotia bank|sherwin williams|simon schuster|smith wesson|standard chartered|standard poor|
    stanley black|steve madden|stella artois|stella mccartney|swiss re|ted baker|thomas cook|thomson reuters|
    tiffany co|tim hortons|tommy bahama|tommy hilfiger|tom ford|tory burch|trader joe|trader joe's|trader joes|
    uncle ben|uncle ben's|van cleef|van heusen|victoria's secret|vidal sassoon|wells fargo|william hill|
    williams sonoma|winston salem|wolters kluwer|yves rocher|yves saint|zeiss ikon
"""
_OFTEN_PEOPLE = """
    allen solly|ben franklin|charles schwab|charles tyrwhitt|david jones|edward jones|eddie bauer|fred meyer|fred perry|
    henry ford|jack wills|james martin|jenny craig|jimmy dean|jimmy john|john lewis|john smith's|john west|
    laura ashley|marie callender|marie claire|marie curie|martin marietta|morgan chase|oscar wilde|paul stuart|
    peter jones|peter thomas roth|philip morris|raymond james|russell stover|sam smith|stanley gibbons|t rowe price|
    vera bradley|vera wang|warner music
"""


def _names(text: str) -> frozenset[tuple[str, ...]]:
    return frozenset(tuple(name.split()) for name in text.replace("\n", "").split("|") if name.strip())


FIRMS = _names(_FIRMS)
OFTEN_PEOPLE = _names(_OFTEN_PEOPLE)
BUSINESS = frozenset(
    """
    broker brokers brokerage bank banks shares stock stocks earnings estimates dividend trademark trademarks brand
    brands retailer retailers store stores shop shops voucher vouchers price prices fee fees fund funds etf etfs
    whisky whiskey bourbon vodka marque marques marken marke marchi marca marcas nasdaq nyse merger acquisition
    franchise dealer dealership
    """.split()  # noqa: SIM905 - a column of words reads better than a list of literals
)
PLACE_BEFORE = frozenset(
    """
    lake mount mt river port fort cape st saint sainte san santa château chateau castle schloss burg isle isla
    île villa camp point loch glen hotel hôtel playa rue calle avenida piazza gare mont lac lago monte sankt
    """.split()  # noqa: SIM905
)
"""Words that a place name begins with."""
PLACE_AFTER = frozenset(
    """
    line station street road harbour harbor square dock docks bridge stadium airport avenue hospital college
    university church museum tower library terminal syndrome disease theorem crude jeans edition cathedral river lake
    island bay peninsula mountains valley canyon falls branch
    """.split()  # noqa: SIM905
)
"""Lower-case words that follow the name of a place, a firm or a discovery."""
PLACE_END = frozenset(
    """
    garden gardens dock docks harbour harbor column tower towers palace castle terminal abbey arena peninsula cape
    glacier desert canal strait ocean forest gallery library pier quay wharf plaza circus marathon award awards prize
    cup trophy medal syndrome disease scale theorem effect crude financial bancorp capital mutual savings advisors
    wealth securities brothers foods pharmacy pharmaceuticals motor automotive airlines hotels resorts resort diner
    grill cafe café bakery brewery winery academy college primary infirmary hospice airline orchestra
    furniture
    """.split()  # noqa: SIM905
)
"""Words that a place or firm name ends with, in addition to `gazetteer.ORGANISATION_WORDS`."""
COLOURS = frozenset(
    "green gold blue grey gray black white red pink brown silver purple yellow orange beige".split()  # noqa: SIM905
)
