//! The home of the doc test of the project's README. Its example uses the testkit, which depends on `foldstream`, so
//! the package `foldstream` cannot run the example.
#![cfg_attr(doctest, doc = include_str!("../../../README.md"))]
