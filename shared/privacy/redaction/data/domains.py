"""What domains end with: enough of it to tell an address with a blank in it from code."""

GENERIC_ENDS = """
    com net org edu gov mil int info biz name pro app dev shop store site online tech cloud xyz email live club
    space world agency digital academy berlin hamburg koeln wien london paris nyc tokyo
    """.split()  # noqa: SIM905 - a column of words reads better than a list of literals
MAIL_PROVIDERS = """
    aol fastmail freenet gmail gmx googlemail hey hotmail icloud libero live mail me msn orange outlook proton
    protonmail qq rediffmail rocketmail seznam t-online tutanota wanadoo web yahoo yandex ymail zoho
    """.split()  # noqa: SIM905 - as above
"""Whoever writes "jane.roe at gmail.com" means an address."""
COUNTRY_ENDS = """
    ac ad ae af ag ai al am ao ar as at au aw az ba bb bd be bf bg bh bi bj bm bn bo br bs bt bw by bz ca cc cd cf
    cg ch ci cl cm cn co cr cu cv cy cz de dj dk dm do dz ec ee eg es et eu fi fj fk fm fo fr ga gd ge gg gh gi gl
    gm gn gr gt gy hk hn hr ht hu id ie il im in io iq ir is it je jm jo jp ke kg kh kr kw ky kz la lb lc li lk lr
    ls lt lu lv ly ma mc md me mg mk ml mm mn mo mr ms mt mu mv mw mx my mz na ne ng ni nl no np nu nz om pa pe pg
    ph pk pl pr ps pt py qa re ro rs ru rw sa sb sc sd se sg sh si sk sl sm sn so sr st sv sy sz tc td tg th tj tl
    tm tn to tr tt tv tw tz ua ug uk us uy uz va vc ve vg vi vn vu ws za zm zw
    """.split()  # noqa: SIM905 - a column of words reads better than a list of literals
