//! Runs the shop's binary on embedded adapters, and compares its report with a direct aggregation
//! that shares no code with it.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::{Command, Output},
};

const HEADER: &str =
    "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country";

/// One line of the file, and its meaning.
struct Line {
    invoice: String,
    code: &'static str,
    /// The description as the file has it, with quotes.
    description: &'static str,
    quantity: i64,
    price: &'static str,
    customer: &'static str,
    country: &'static str,
}

impl Line {
    fn csv(&self) -> String {
        let Self {
            invoice,
            code,
            description,
            quantity,
            price,
            customer,
            country,
        } = self;
        format!(
            "{invoice},{code},{description},{quantity},2010-12-01 08:26:00,{price},{customer},{country}"
        )
    }
}

/// Generates lines with every quirk of the real data. Lines of one invoice are never adjacent.
fn lines(count: usize) -> Vec<Line> {
    let codes = ["85123A", "85123a", "84077", "POST", "gift_0001", "D"];
    let descriptions = [
        "HOLDER",
        "",
        "\"SIGN, METAL\"",
        "\"FRAME 7\"\" SIZE \"",
        "ÉCLAIR £",
    ];
    let prices = ["2.55", "0.0", "-11062.06", "0.001", "13", "4.95"];
    let countries = ["United Kingdom", "France", "EIRE", "Channel Islands"];
    let line = |n: usize| {
        let invoice = n % (count / 5 + 1);
        let is_cancellation = invoice % 7 == 3;
        let quantity = [6, 1, 0, 48, -9600][n % 5];
        Line {
            invoice: format!(
                "{}{}",
                if is_cancellation { "C" } else { "" },
                536_365 + invoice
            ),
            code: codes[n * 7 % codes.len()],
            description: descriptions[n % descriptions.len()],
            quantity: if is_cancellation {
                -i64::abs(quantity)
            } else {
                quantity
            },
            price: prices[n * 5 % prices.len()],
            customer: if n.is_multiple_of(3) { "" } else { "17850.0" },
            country: countries[invoice % countries.len()],
        }
    };
    (0..count).map(line).collect()
}

/// Parses a decimal as millionths.
fn millionths(text: &str) -> i128 {
    let (sign, text) = text.strip_prefix('-').map_or((1, text), |text| (-1, text));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    assert!(fraction.len() <= 6, "{text}");
    sign * format!("{whole}{fraction:0<6}").parse::<i128>().unwrap()
}

#[derive(Debug, Default, PartialEq)]
struct Expected {
    units: BTreeMap<String, i64>,
    revenue: BTreeMap<String, i128>,
    orders: usize,
    events: usize,
}

fn aggregate(lines: &[Line]) -> Expected {
    let mut expected = Expected::default();
    for line in lines {
        *expected.units.entry(line.code.into()).or_default() += line.quantity;
        *expected.revenue.entry(line.country.into()).or_default() +=
            i128::from(line.quantity) * millionths(line.price);
        expected.events += 1;
    }
    expected.orders = lines
        .iter()
        .map(|line| &line.invoice)
        .collect::<BTreeSet<_>>()
        .len();
    expected
}

/// Reads a report and checks its form: the keys, the order of the products, plain notation of
/// money.
fn read_report(path: &Path) -> Expected {
    let report: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let keys: BTreeSet<_> = report
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(
        keys,
        BTreeSet::from(["hot_products", "revenue_by_country", "orders", "events"])
    );
    let products: Vec<_> = report["hot_products"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| {
            (
                p["units"].as_i64().unwrap(),
                p["stock_code"].as_str().unwrap().to_string(),
            )
        })
        .collect();
    let is_before = |(a, code_a): &(i64, String), (b, code_b): &(i64, String)| {
        a > b || (a == b && code_a.as_bytes() < code_b.as_bytes())
    };
    assert!(products.is_sorted_by(is_before), "{products:?}");
    let revenue = report["revenue_by_country"].as_object().unwrap();
    Expected {
        units: products
            .into_iter()
            .map(|(units, code)| (code, units))
            .collect(),
        revenue: revenue
            .iter()
            .map(|(c, m)| (c.clone(), millionths(m.as_str().unwrap())))
            .collect(),
        orders: usize::try_from(report["orders"].as_u64().unwrap()).unwrap(),
        events: usize::try_from(report["events"].as_u64().unwrap()).unwrap(),
    }
}

fn shop(arguments: &[&str]) -> Output {
    let mut shop = Command::new(env!("CARGO_BIN_EXE_shop"));
    shop.args(arguments)
        .env_remove("RUST_LOG")
        .output()
        .unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Imports a file of the header and these lines, and reads the report.
fn import(text: &str) -> (Output, Option<Expected>) {
    let folder = tempfile::tempdir().unwrap();
    let [csv, json] = ["in.csv", "out.json"].map(|name| folder.path().join(name));
    fs::write(&csv, text).unwrap();
    let [from, to] = [&csv, &json].map(|path| path.to_str().unwrap());
    let output = shop(&["--import", from, "--report", to]);
    let report = json.exists().then(|| read_report(&json));
    (output, report)
}

#[test]
fn the_report_of_an_import_equals_a_direct_aggregation() {
    for line_end in ["\n", "\r\n"] {
        let lines = lines(1500);
        let rows: Vec<_> = std::iter::once(HEADER.into())
            .chain(lines.iter().map(Line::csv))
            .collect();
        let (output, report) = import(&(rows.join(line_end) + line_end));
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert_eq!(report.unwrap(), aggregate(&lines));
        assert_eq!(
            stderr(&output),
            "",
            "no progress bar where there is no terminal"
        );
    }
}

#[test]
fn malformed_lines_are_reported_and_the_rest_is_imported() {
    let good = lines(60);
    let mut rows = vec![HEADER.to_string()];
    rows.extend(good.iter().map(Line::csv));
    let bad = [
        (
            10,
            "536365,85123A,HOLDER,six,2010-12-01 08:26:00,2.55,17850.0,France",
            "Quantity",
        ),
        (
            20,
            "536365,85123A,\"NEVER CLOSED,6,2010-12-01 08:26:00,2.55,17850.0,France",
            "not closed",
        ),
        (
            30,
            "536365,85123A,HOLDER,6,2010-12-01 08:26:00,2.55",
            "6 fields instead of 8",
        ),
        (
            40,
            ",85123A,HOLDER,6,2010-12-01 08:26:00,2.55,17850.0,France",
            "InvoiceNo",
        ),
        (
            50,
            "NEVER-1,85123A,HOLDER,6,01.12.2010,2.55,17850.0,France",
            "InvoiceDate",
        ),
        (
            60,
            "NEVER-2,85123A,HOLDER,6,2010-12-01 08:26:00,2.55e3,17850.0,France",
            "UnitPrice",
        ),
    ];
    for (line, text, _) in bad {
        rows.insert(line - 1, text.into());
    }
    let (output, report) = import(&rows.join("\n"));
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(report.unwrap(), aggregate(&good));
    let stderr = stderr(&output);
    let told: Vec<_> = stderr.lines().collect();
    assert_eq!(told.len(), bad.len(), "{stderr}");
    for (told, (line, _, reason)) in told.iter().zip(bad) {
        assert!(
            told.starts_with(&format!("refused: line {line}: ")),
            "{told}"
        );
        assert!(told.contains(reason), "{told}");
    }
}

#[test]
fn a_file_that_cannot_be_read_says_why() {
    let (output, report) = import("number,price\n1,2\n");
    assert_eq!((output.status.code(), report), (Some(1), None));
    let told = stderr(&output);
    assert!(
        told.starts_with("error: ") && told.contains("has no column InvoiceNo"),
        "{told}"
    );
    let output = shop(&["--import", "/nowhere/in.csv"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("cannot read /nowhere/in.csv: No such file"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn the_story_is_told_to_its_end_and_repeats_by_its_seed() {
    let folder = tempfile::tempdir().unwrap();
    let tell = |name: &str, seed: &str| {
        let json = folder.path().join(name);
        let output = shop(&[
            "--customers",
            "60",
            "--seed",
            seed,
            "--report",
            json.to_str().unwrap(),
        ]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let text = String::from_utf8(output.stdout).unwrap();
        for part in [
            "refused: ",
            "records on topic GlobalEvents",
            "crashes",
            "starts again",
            "They equal",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        read_report(&json)
    };
    let first = tell("1.json", "7");
    assert!(first.orders > 0 && first.orders <= 60 && first.events > first.orders);
    assert_eq!(first, tell("2.json", "7"));
    assert_ne!(first, tell("3.json", "8"));
}

#[test]
fn the_bad_day_ends_with_right_totals() {
    let output = shop(&["--chaos", "--seed", "3"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    for part in [
        "$ shop redrive payments all",
        "every order is paid once",
        "They equal",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert_eq!(
        stderr(&output),
        "",
        "the story tells of every failure itself"
    );
}

#[cfg(not(feature = "production"))]
#[test]
fn servers_without_their_adapters_are_an_error_that_says_what_to_do() {
    for arguments in [
        &["--dynamodb", "http://localhost:8000"][..],
        &["import", "in.csv"],
        &["processors"],
        &["redrive", "sales", "all", "--dry-run"],
    ] {
        let output = shop(arguments);
        assert_eq!(output.status.code(), Some(1));
        assert!(
            stderr(&output).contains("--features production"),
            "{}",
            stderr(&output)
        );
    }
}
